"""Attention that another pack has replaced, for the whole process: ours runs all the same, or it is refused."""

import sys

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, random_batch
from wantune.trainer.base.errors import UserError

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def model(comfy, tmp_path_factory):
    return tools.load_dit(tools.random_dit(tmp_path_factory.mktemp("dit")))


def gradients(model, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    adapted = AdaptedModel(model)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    with adapted.attached(checkpointing):
        return adapted.gradients(adapted.loss_B(batch))


def fast_kernel(q, k, v, attn_mask=None, **options):
    """As of a pack that patches torch: right, but without a backward."""
    return torch._C._nn.scaled_dot_product_attention(q.detach(), k.detach(), v.detach(), attn_mask)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_kernel_without_backward_in_the_place_of_torchs_is_not_used(model, monkeypatch, caplog, checkpointing):
    expected, video = gradients(model, checkpointing), tools.sample(model)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fast_kernel)
    found = gradients(model, checkpointing)
    assert all(torch.equal(found[key], truth) and truth.any() for key, truth in expected.items())
    assert "scaled_dot_product_attention is fast_kernel of" in caplog.text
    assert torch.equal(tools.sample(model), video)


def detached(function, *args, **kwargs):
    return function(*(each.detach() if isinstance(each, torch.Tensor) else each for each in args), **kwargs)


def test_attention_of_another_pack_in_the_network_is_refused_by_name(model, monkeypatch):
    from comfy.ldm.modules.attention import attention_pytorch

    def sage_attention(q, k, v, heads, **options):
        return detached(attention_pytorch, q, k, v, heads)

    video = tools.sample(model)
    network = sys.modules[type(model.model.diffusion_model).__module__]
    monkeypatch.setattr(network, "optimized_attention", sage_attention)
    with pytest.raises(UserError, match="optimized_attention is .*sage_attention of .*test_attention here"):
        gradients(model)
    monkeypatch.undo()
    assert torch.equal(tools.sample(model), video) and gradients(model)


def test_attention_of_another_pack_that_has_a_gradient_is_refused_by_name(model, monkeypatch):
    """It would ignore the bias that stands for the text's padding."""
    from comfy.ldm.modules.attention import attention_pytorch

    network = sys.modules[type(model.model.diffusion_model).__module__]
    unwrapped = attention_pytorch.__wrapped__ if hasattr(attention_pytorch, "__wrapped__") else attention_pytorch

    def flash_attention(q, k, v, heads, **options):
        return unwrapped(q, k, v, heads)

    monkeypatch.setattr(network, "optimized_attention", flash_attention)
    with pytest.raises(UserError, match="Of 1 calls of attention 0 .*flash_attention of .*start ComfyUI without"):
        gradients(model)


def test_attention_that_takes_the_gradient_away_around_ours_is_refused(model, monkeypatch):
    network = sys.modules[type(model.model.diffusion_model).__module__]
    own = network.optimized_attention
    monkeypatch.setattr(network, "optimized_attention", lambda *args, **kwargs: detached(own, *args, **kwargs))
    with pytest.raises(UserError, match="blocks.0.self_attn of this model gives no right gradient"):
        gradients(model)


WRONG = {
    "no gradient": lambda q, k, v, bias: (q.detach(), k.detach(), v.detach(), bias),
    "none of q": lambda q, k, v, bias: (q.detach(), k, v, bias),
    "none of k": lambda q, k, v, bias: (q, k.detach(), v, bias),
    "none of v": lambda q, k, v, bias: (q, k, v.detach(), bias),
    "twice that of v": lambda q, k, v, bias: (q, k, 2 * v - v.detach(), bias),
    "no bias": lambda q, k, v, bias: (q, k, v, None),
    "another result": lambda q, k, v, bias: (q * 1.3, k, v, bias),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [1, 12, 40])
def test_the_self_test_tells_right_from_wrong(monkeypatch, dtype, heads):
    from wantune.nodes.backend import attention

    attention.self_test(heads, 128, torch.device("cpu"), dtype)
    own = attention.attend
    for name, wrong in WRONG.items():
        monkeypatch.setattr(attention, "attend", lambda q, k, v, heads, bias=None, wrong=wrong: own(
            *wrong(q, k, v, bias)[:3], heads, wrong(q, k, v, bias)[3]))
        with pytest.raises(UserError, match="PyTorch's attention gives no right (result|gradient of [qkv]) here"):
            attention.self_test(heads, 128, torch.device("cpu"), dtype)
            pytest.fail(name)


def test_the_self_test_is_cheap(comfy):
    import time

    from wantune.nodes.backend import attention

    started = time.process_time()
    attention.self_test(40, 128, torch.device("cpu"), torch.float32)
    assert time.process_time() - started < 2


class Watched(TorchDispatchMode):
    """Notes each kernel of attention, whether it got a bias, and whether cuDNN's might have been taken."""

    def __init__(self, fails_with: str = "") -> None:
        super().__init__()
        self.seen, self._fails_with = set(), fails_with

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_scaled_dot_product" in function.name():
            names = [argument.name for argument in function._schema.arguments]
            has_bias = {**dict(zip(names, args, strict=False)), **(kwargs or {})}.get("attn_mask") is not None
            if "backward" not in function.name():
                self.seen.add((has_bias, torch.backends.cuda.cudnn_sdp_enabled()))
                if self._fails_with and has_bias:
                    raise RuntimeError(self._fails_with)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_a_bias_attention_never_goes_to_cudnn(model, checkpointing):
    """Its kernel may have NaN gradients there; in what is computed again in backward neither."""
    adapted = AdaptedModel(model)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with adapted.attached(checkpointing), Watched() as watched:
        loss = adapted.loss_B(batch)
        assert watched.seen == {(False, True), (True, False)}
        watched.seen.clear()
        adapted.gradients(loss)
    assert not checkpointing or watched.seen == {(False, True), (True, False)}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_cudnn_is_as_before_where_attention_fails(model):
    adapted = AdaptedModel(model)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    with adapted.attached(), pytest.raises(RuntimeError, match="no kernel"), Watched(fails_with="no kernel"):
        adapted.loss_B(batch)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_comfyuis_order_of_kernels_holds_in_training_alone(model, monkeypatch):
    import comfy.ops

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    monkeypatch.setattr(comfy.ops, "SDPA_BACKEND_PRIORITY", order, raising=False)
    found = torch._C._get_sdp_priority_order()
    adapted = AdaptedModel(model)
    with adapted.denoiser.training():
        assert torch._C._get_sdp_priority_order()[:4] == [int(backend) for backend in order]
    assert torch._C._get_sdp_priority_order() == found


def test_on_a_card_texts_of_other_lengths_repeat_the_shapes_and_the_result(model, monkeypatch):
    adapted = AdaptedModel(model)
    batches = [random_batch((1, 4, 6), (0.3, 0.8), torch.device("cpu"), text_tokens=tokens) for tokens in (5, 11, 25)]
    exact = [adapted.conditions(batch) for batch in batches]
    monkeypatch.setattr(adapted.denoiser, "device", torch.device("cuda"))
    few = [adapted.conditions(batch) for batch in batches]
    monkeypatch.undo()
    assert {conditions["text"].shape[1] for conditions in few} == {32}
    assert {conditions["text"].device.type for conditions in few} == {"cpu"}
    assert len({conditions["text"].shape[1] for conditions in exact}) == 3
    with adapted.attached():
        for batch, one, other in zip(batches, exact, few, strict=True):
            found = []
            for conditions in (one, other):
                velocity = adapted.denoiser.velocity(batch.noise_BCFHW, batch.t_B, conditions)
                found.append({"velocity": velocity.detach(), **adapted.gradients(velocity.square().flatten(1).mean(1))})
            assert all((found[0][key] - found[1][key]).norm() <= 2e-6 * found[0][key].norm() for key in found[0])
