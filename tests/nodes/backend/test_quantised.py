"""Every way in which ComfyUI stores a quantised weight, trained through."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wantune.tests.support import quantised, tools
from wantune.tests.support.adapted import AdaptedModel, random_batch
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.plan import EVERYTHING, Plan

IN, OUT = 512, 256
CLOSE = {"W4A4": 0.95, "W4A4 computed in int8": 0.95}
"""Least cosine of the adapter's gradient to that of the dequantised model, where the products are of 4 bits."""


@pytest.fixture(params=quantised.LAYOUTS)
def layout(request, comfy):
    import comfy.ops

    if quantised.LAYOUTS[request.param][0] not in comfy.ops.QUANT_ALGOS or not hasattr(comfy.ops, "QuantLinearFunc"):
        pytest.skip("This version of ComfyUI does not read it.")
    return request.param


def test_no_layout_of_comfyuis_is_missing_here(comfy):
    import comfy.ops

    assert comfy.ops.QUANT_ALGOS.keys() <= {name for name, _options in quantised.LAYOUTS.values()}


def layer(layout: str, dtype: torch.dtype, is_full: bool, pre_quant_scale: bool = False) -> nn.Module:
    """A Linear as ComfyUI's loader makes it of a quantised file.

    Args:
        is_full: as on a card without products in this layout.
        pre_quant_scale: with a factor for each value of the input.
    """
    import comfy.ops

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator) * IN**-0.5
    state = quantised.entries(weight.to(dtype), "layer.weight", layout)
    state["layer.bias"] = torch.randn(OUT, generator=generator).to(dtype)
    if pre_quant_scale:
        state["layer.pre_quant_scale"] = torch.rand(IN, generator=generator).to(dtype) + 0.5
    holder = nn.Module()
    with torch.inference_mode():
        operations = comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=is_full)
        holder.layer = operations.Linear(IN, OUT, device="cpu", dtype=dtype)
        holder.load_state_dict(state)
    return holder.layer


@pytest.fixture
def products_on_a_cpu(monkeypatch):
    """PyTorch multiplies nvfp4 and mxfp8 on no CPU; comfy_kitchen multiplies their values when told so."""
    eager = pytest.importorskip("comfy_kitchen.backends.eager.quantization")

    def unsupported(*_args, **_kwargs):
        raise RuntimeError("not on a CPU")

    right = eager.scaled_mm_v2
    monkeypatch.setattr(eager, "scaled_mm_v2", lambda *args, **kwargs: (
        unsupported if "swizzle_a" in kwargs else right)(*args, **kwargs))


def stand_in(module: nn.Module):
    from wantune.nodes.backend.frozen import FrozenLinear

    return FrozenLinear(module)


@pytest.mark.parametrize("is_full", [False, True], ids=["its own product", "dequantised"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_gradient_of_each_layout_is_that_of_its_dequantised_weight(
    layout, dtype, is_full, products_on_a_cpu
):
    from wantune.nodes.backend import casting, self_test

    linear = stand_in(layer(layout, dtype, is_full))
    self_test.of_linears([linear], torch.device("cpu"), dtype)
    x = torch.randn(2, 40, IN, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grad_y = torch.randn(2, 40, OUT, dtype=dtype, generator=torch.Generator().manual_seed(2))
    y = linear(x)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    weight = linear.module.weight.dequantize()
    assert torch.equal(grad_x, grad_y @ weight)
    with torch.inference_mode():
        expected = linear.module(x.detach())
    assert torch.allclose(y, expected, rtol=1e-2, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    # the same bits where the cast is kept for the gradient
    linear.keeps_cast = True
    kept = linear(x)
    assert isinstance(linear._kept, casting.Cast)
    assert torch.equal(kept, y) and torch.equal(torch.autograd.grad(kept, x, grad_y)[0], grad_x)
    assert linear._kept is None
    onto = linear.input_gradient(grad_y, torch.ones_like(grad_x))
    assert torch.allclose(onto, grad_x + 1, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_a_factor_of_the_input_is_in_the_gradient(layout, products_on_a_cpu):
    from wantune.nodes.backend import self_test

    if layout != "nvfp4":
        pytest.skip("Only nvfp4 files have one.")
    for is_full in (False, True):
        linear = stand_in(layer(layout, torch.float32, is_full, pre_quant_scale=True))
        self_test.of_linears([linear], torch.device("cpu"), torch.float32)
        x = torch.randn(8, IN, generator=torch.Generator().manual_seed(1)).requires_grad_()
        grad_y = torch.randn(8, OUT, generator=torch.Generator().manual_seed(2))
        (grad_x,) = torch.autograd.grad(linear(x), x, grad_y)
        expected = grad_y @ linear.module.weight.dequantize() * linear.module.pre_quant_scale
        assert torch.equal(grad_x, expected)
        assert torch.allclose(linear.input_gradient(grad_y, torch.ones_like(grad_x)), expected + 1)


def test_a_layer_that_cannot_be_trained_is_refused_by_its_layout(layout, monkeypatch):
    from wantune.nodes.backend import self_test
    from wantune.nodes.backend.frozen import FrozenLinear

    linear = stand_in(layer(layout, torch.bfloat16, is_full=True))
    monkeypatch.setattr(FrozenLinear, "input_gradient", lambda self, grad: grad.new_zeros(*grad.shape[:-1], IN))
    with pytest.raises(UserError, match=quantised.LAYOUTS[layout][0]):
        self_test.of_linears([linear], torch.device("cpu"), torch.bfloat16)


def test_each_layout_of_a_mixed_file_is_tested(layout, monkeypatch):
    """Their layers are of one class, their weights of another, both with one dtype."""
    from wantune.nodes.backend import self_test
    from wantune.nodes.backend.frozen import FrozenLinear

    if layout == "fp8_e4m3":
        pytest.skip("The one that comes first.")
    right = FrozenLinear.input_gradient
    first = stand_in(layer("fp8_e4m3", torch.bfloat16, is_full=True))
    other = stand_in(layer(layout, torch.bfloat16, is_full=True))
    monkeypatch.setattr(FrozenLinear, "input_gradient",
                        lambda self, grad: right(self, grad) * (2 if self is other else 1))
    with pytest.raises(UserError, match=quantised.LAYOUTS[layout][0]):
        self_test.of_linears([first, other], torch.device("cpu"), torch.bfloat16)


BATCH_SIZE_FHW = (1, 8, 8)


def gradient(model, plan: Plan) -> torch.Tensor:
    adapted = AdaptedModel(model)
    with adapted.attached(plan):
        batch = random_batch(BATCH_SIZE_FHW, (0.3, 0.8), adapted.denoiser.device)
        return torch.cat([each.flatten() for each in adapted.gradients(adapted.loss_B(batch)).values()])


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("quantised"), dim=256, ffn_dim=512)


def test_a_model_of_each_layout_is_trained(layout, dit_file):
    """As ComfyUI computes it here: on a CPU some layouts are dequantised, others have products of their own."""
    file, plain = quantised.quantise_file(dit_file, layout)
    model = tools.load_dit(file)
    linear = model.model.diffusion_model.blocks[0].ffn[0]
    assert linear.quant_format == quantised.LAYOUTS[layout][0]
    found = gradient(model, Plan())
    assert torch.equal(found, gradient(model, Plan(whole_blocks=EVERYTHING)))
    expected = gradient(tools.load_dit(plain), Plan())
    assert torch.cosine_similarity(found, expected, dim=0) > CLOSE.get(layout, 0.999)


def load_gguf(file):
    """As ComfyUI-GGUF's loader: Linears of the blocks in Q8_0, everything else as it is."""
    import comfy.sd

    state = {key: quantised.q8_0(value) if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2
             else value for key, value in load_file(file).items()}
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(
            state, model_options={"custom_operations": quantised.gguf_operations()})


def test_a_gguf_model_is_trained(comfy, dit_file, tmp_path):
    from safetensors.torch import save_file

    state = load_file(dit_file)
    for key, value in state.items():
        if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2:
            state[key] = quantised.values(quantised.q8_0(value))
    save_file(state, tmp_path / "plain.safetensors")
    model = load_gguf(dit_file)
    linears = [module for module in model.model.diffusion_model.blocks.modules() if hasattr(module, "casts")]
    assert len(linears) == 20
    found = gradient(model, Plan(whole_blocks=EVERYTHING))
    expected = gradient(tools.load_dit(tmp_path / "plain.safetensors"), Plan())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    adapted = AdaptedModel(model)
    with adapted.attached(Plan()):
        for linear in linears:
            linear.casts = 0
        batch = random_batch(BATCH_SIZE_FHW, (0.3, 0.8), adapted.denoiser.device)
        adapted.gradients(adapted.loss_B(batch))
    assert Counter(linear.casts for linear in linears) == {2: 16, 1: 4}  # once for keys and values of the text


def test_a_gguf_layer_is_refused_by_its_type(comfy, dit_file, monkeypatch):
    from wantune.nodes.backend.frozen import FrozenLinear

    model = load_gguf(dit_file)
    right = FrozenLinear.input_gradient
    monkeypatch.setattr(FrozenLinear, "input_gradient", lambda *args: 2 * right(*args))
    with pytest.raises(UserError, match="Q8_0"):
        with AdaptedModel(model).attached(Plan()):
            pass
