"""Attention that another pack has replaced, for the whole process: ours runs all the same, or it is refused."""

import sys

import pytest
import torch

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
