"""LoRA as one node: its outputs and gradients are those of the formula, written with autograd."""

import pytest
import torch

from wantune.tests.support.adapted import FixedLinear
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.adapter.lora_linear import LoraLinears
from wantune.trainer.settings.training import LoraConfig

SIZES = {"self_attn.q": (32, 48), "self_attn.k": (32, 48), "self_attn.v": (32, 48), "self_attn.wide": (32, 64),
         "ffn.0": (32, 80)}
"""in_features and out_features."""

QKV = [f"blocks.0.self_attn.{which}" for which in "qkv"]


class Foreign(FixedLinear):
    """With another pack's forward around it, which doubles what it gives."""

    is_plain = False

    def __call__(self, x):
        return 2 * super().__call__(x)

    def output(self, _x, out=None):
        raise AssertionError("only the other pack's forward is right")

    input_gradient = output


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linears(kind=FixedLinear, biased: bool = True) -> dict[str, FixedLinear]:
    return {f"blocks.0.{name}": kind(random(rows, columns, seed=number), random(rows, seed=9) if biased else None)
            for number, (name, (columns, rows)) in enumerate(SIZES.items())}


def adapted(config: LoraConfig | None = None, **options) -> Adapter:
    adapter = Adapter(config or LoraConfig(rank=4, alpha=6.0), linears(**options), torch.device("cpu"), seed=0)
    for number, parameter in enumerate(adapter.parameters):
        with torch.no_grad():
            parameter.copy_(random(*parameter.shape, seed=20 + number) * 0.3)
    return adapter


def by_the_formula(adapter: Adapter, names: list[str], x: torch.Tensor, grads: list[torch.Tensor], factor: float = 1.0):
    """y_i, the gradient of x, and those of all parameters of these Linears."""
    x = x.double().requires_grad_()
    parameters = {key: value.double().requires_grad_() for key, value in adapter.state_dict().items()
                  if key.rsplit(".lora_", 1)[0] in names}
    ys = []
    for name in names:
        linear, a, b = adapter._linears[name], *(parameters[f"{name}.lora_{kind}.weight"] for kind in "AB")
        base = x @ linear.weight.double().T + (0 if linear.bias is None else linear.bias.double())
        ys.append(factor * base + 6.0 / 4 * x @ a.T @ b.T)
    torch.autograd.backward(ys, [grad.double() for grad in grads])
    return ys, x.grad, {key: value.grad for key, value in parameters.items()}


def close(ours: torch.Tensor, truth: torch.Tensor, bound: float = 1e-6) -> bool:
    return float((ours.double() - truth).norm() / truth.norm()) < bound


def gradients(adapter: Adapter) -> dict[str, torch.Tensor]:
    adapter.collect_gradients()
    return {key: parameter.grad for key, parameter in adapter._parameters.items() if parameter.grad is not None}


@pytest.mark.parametrize("names", [QKV, ["blocks.0.ffn.0"]], ids=["three with one input", "one"])
@pytest.mark.parametrize("biased", [True, False])
def test_step_by_step_and_through_autograd_it_is_the_formula(names, biased):
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="|".join(names)), biased=biased)
    x, grads = random(7, 32), [random(7, adapter._linears[name].out_features, seed=5) for name in names]
    ys, grad_x, expected = by_the_formula(adapter, names, x, grads)
    group = adapter.linears_of(names, torch.float32)
    found, saved = group.forward(x, saves=True)
    ours = group.backward(saved, grads, needs_x=True)
    assert all(close(y, truth.detach()) for y, truth in zip(found, ys, strict=True)) and close(ours, grad_x)
    learned = gradients(adapter)
    assert learned.keys() == expected.keys()
    assert all(close(learned[key], expected[key]) for key in expected)
    adapter.discard_gradients()
    start = x[None].clone().requires_grad_()  # with a batch, as ComfyUI's own forward calls it
    if len(names) == 1:
        y = adapter.forward_of(names[0], torch.float32)(start)
        torch.autograd.backward(y, grads[0][None])
    else:
        torch.autograd.backward(group(start), [grad[None] for grad in grads])
    assert close(start.grad[0], grad_x)
    assert all(close(value, expected[key]) for key, value in gradients(adapter).items())


def test_without_a_gradient_of_x_parameters_get_theirs_and_the_weight_is_not_touched(monkeypatch):
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="self_attn.[qkv]"))
    x, grads = random(7, 32), [random(7, adapter._linears[name].out_features) for name in QKV]
    _, _, expected = by_the_formula(adapter, QKV, x, grads)
    monkeypatch.setattr(FixedLinear, "input_gradient", None)
    group = adapter.linears_of(QKV, torch.float32)
    _, saved = group.forward(x, saves=True)
    assert group.backward(saved, grads, needs_x=False) is None
    assert all(close(value, expected[key]) for key, value in gradients(adapter).items())


def test_linears_of_one_width_give_one_tensor_and_others_are_computed_one_by_one():
    wide = [*QKV[:2], "blocks.0.self_attn.wide"]
    x = random(7, 32)
    alike, _ = adapted().linears_of(QKV, torch.float32).forward(x, saves=True)
    assert alike.shape == (3, 7, 48)
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="self_attn.(q|k|wide)"))
    group = adapter.linears_of(wide, torch.float32)
    assert not isinstance(group, LoraLinears) and group.can_wait
    grads = [random(7, 48), random(7, 48, seed=1), random(7, 64)]
    ys, grad_x, expected = by_the_formula(adapter, wide, x, grads)
    found, saved = group.forward(x, saves=True)
    assert all(close(y, truth.detach()) for y, truth in zip(found, ys, strict=True))
    assert close(group.backward(saved, grads, needs_x=True), grad_x)
    learned = gradients(adapter)
    assert learned.keys() == expected.keys()
    assert all(close(learned[key], expected[key]) for key in expected)


def test_what_a_gives_is_not_computed_again_where_it_is_kept():
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="self_attn.[qkv]"))
    x, made = random(7, 32), []
    group = adapter.linears_of(QKV, torch.float32)

    def kept(compute):
        made[:] = made or [compute()]
        return made[0]

    first, _ = group.forward(x, saves=False, kept=kept)
    again, saved = group.forward(x, saves=True, kept=kept)
    assert torch.equal(first, again) and made[0].shape == (7, 12) and saved[1] is made[0]


def test_another_packs_forward_is_recorded_by_autograd():
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="self_attn.[qkv]"), kind=Foreign)
    x, grads = random(7, 32), [random(7, adapter._linears[name].out_features) for name in QKV]
    ys, grad_x, expected = by_the_formula(adapter, QKV, x, grads, factor=2.0)
    group = adapter.linears_of(QKV, torch.float32)
    found, saved = group.forward(x, saves=True)
    assert all(close(y, truth.detach()) for y, truth in zip(found, ys, strict=True))
    assert close(group.backward(saved, grads, needs_x=True), grad_x)
    assert all(close(value, expected[key]) for key, value in gradients(adapter).items())


def test_dropout_reaches_the_adapter_alone_and_its_gradient_is_that_of_what_was_drawn():
    config = LoraConfig(rank=4, alpha=6.0, targets="ffn", dropout=0.5)
    adapter, name = adapted(config), "blocks.0.ffn.0"
    x, grad = random(7, 32), random(7, 80)
    group = adapter.linears_of([name], torch.float32)
    with adapter.dropout_from(3):
        (y,), saved = group.forward(x, saves=True)
        grad_x = group.backward(saved, (grad,), needs_x=True)
    learned = gradients(adapter)
    with adapter.dropout_from(3):
        kept = torch.nn.functional.dropout(torch.ones_like(x), 0.5)
    assert 0.3 < float((kept == 0).float().mean()) < 0.7
    start, scaled = x.double().requires_grad_(), kept.double()
    parameters = {key: value.double().requires_grad_() for key, value in adapter.state_dict().items()}
    a, b = (parameters[f"{name}.lora_{kind}.weight"] for kind in "AB")
    linear = adapter._linears[name]
    truth = start @ linear.weight.double().T + linear.bias.double() + 1.5 * (start * scaled) @ a.T @ b.T
    truth.backward(grad.double())
    assert close(y, truth.detach()) and close(grad_x, start.grad)
    assert all(close(learned[key], parameters[key].grad) for key in parameters)


def test_gradients_of_several_batches_are_added_and_those_of_a_broken_off_one_are_not():
    adapter, name = adapted(LoraConfig(rank=4, alpha=6.0, targets="ffn")), "blocks.0.ffn.0"
    group, sums = adapter.linears_of([name], torch.float32), {}
    for seed in range(3):
        x, grad = random(7, 32, seed=seed), random(7, 80, seed=50 + seed)
        for key, value in by_the_formula(adapter, [name], x, [grad])[2].items():
            sums[key] = sums.get(key, 0) + value
        group.backward(group.forward(x, saves=True)[1], (grad,), needs_x=True)
        adapter.collect_gradients()
    assert all(close(value, sums[key]) for key, value in gradients(adapter).items())
    group.backward(group.forward(random(7, 32), saves=True)[1], (random(7, 80),), needs_x=True)
    adapter.discard_gradients()
    assert gradients(adapter) == {}


def test_a_backward_that_leaves_out_a_matrix_is_an_error_of_ours():
    adapter = adapted()
    group = adapter.linears_of(["blocks.0.ffn.0"], torch.float32)
    group.backward(group.forward(random(7, 32), saves=True)[1], (random(7, 80),), needs_x=True)
    with pytest.raises(RuntimeError, match="no gradient was added for blocks.0.self_attn"):
        adapter.collect_gradients()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_gradients_end_in_fp32_and_are_as_right_as_the_dtype(dtype):
    adapter = adapted(LoraConfig(rank=4, alpha=6.0, targets="self_attn.[qkv]"))
    x, grads = random(7, 32), [random(7, adapter._linears[name].out_features) for name in QKV]
    ys, grad_x, expected = by_the_formula(adapter, QKV, x, grads)
    group = adapter.linears_of(QKV, dtype)
    with adapter.cast("blocks.0", dtype, is_whole=True):
        found, saved = group.forward(x.to(dtype), saves=True)
        ours = group.backward(saved, [grad.to(dtype) for grad in grads], needs_x=True)
    assert all(y.dtype == dtype and close(y, truth.detach(), 2e-2) for y, truth in zip(found, ys, strict=True))
    assert close(ours, grad_x, 2e-2)
    for key, value in gradients(adapter).items():
        assert value.dtype == torch.float32 and close(value, expected[key], 2e-2), key
