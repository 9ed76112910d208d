"""Bases in 8 and 4 bits: their gradient, what they take of memory, and what is said where the packages are missing."""

import importlib.util

import pytest
import torch
from torch import nn

from wantune.tests.support import on_diffusers, wan_models
from wantune.tests.support.adapted import batch_of
from wantune.tests.support.on_diffusers import CPU, Adapted, Snapshot, relative
from wantune.trainer.base.errors import UserError
from wantune.trainer.wan_diffusers import quantised
from wantune.trainer.wan_diffusers.frozen import FrozenLinear
from wantune.trainer.wan_diffusers.loading import load_transformer

NAME = "Wan2.1 T2V"
ROUNDING = {"int8": 0.02, "fp8": 0.05, "nf4": 0.15}
"""Of a weight, relative."""
PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return wan_models.write(NAME, tmp_path_factory.mktemp("file") / "model.safetensors")


@pytest.mark.parametrize(("quantization", "is_folder"), [("int8", False), ("fp8", True), ("nf4", False)])
def test_a_quantised_base_has_the_gradients_of_its_values(file, tmp_path, quantization, is_folder):
    pytest.importorskip(PACKAGES[quantization])
    exact = load_transformer(file, torch.float32, CPU)
    if is_folder:
        exact.save_pretrained(tmp_path / "folder")
    transformer = load_transformer(tmp_path / "folder" if is_folder else file, torch.float32, CPU, quantization)
    ours = on_diffusers.of(transformer)
    assert ours.size.are_cast and ours.size.stored < 0.35 * on_diffusers.of(exact).size.stored
    linears = ours.linears()
    with torch.no_grad():
        for name, linear in on_diffusers.of(exact).linears().items():
            values = quantised.plain(linears[name].module.weight, torch.float32)
            assert not quantised.is_plain(linears[name].module.weight)
            assert 0 < relative(values, linear.module.weight) < ROUNDING[quantization]
            linear.module.weight.copy_(values)
    assert quantised.is_plain(transformer.proj_out.weight) and transformer.rope.freqs_cos.dtype == torch.float32
    snapshot = Snapshot(transformer)
    batch = batch_of(NAME, (2, 4, 4), (0.4,), CPU)
    found = []
    for denoiser in (ours, on_diffusers.of(exact)):
        adapted = Adapted(denoiser)
        adapted.adapter.load_state_dict({key: torch.full_like(value, 0.01)
                                         for key, value in adapted.adapter.state_dict().items()})
        with adapted.attached():
            velocity = adapted.velocity(batch.noise_BCFHW, batch)
            found.append((velocity.detach(), adapted.gradients(velocity.square().mean())))
    (velocity, gradients), (expected, expected_gradients) = found
    assert relative(velocity, expected) < 1e-5
    assert all(relative(gradients[key], truth) < 1e-5 for key, truth in expected_gradients.items())
    snapshot.assert_untouched()


def test_a_linear_without_a_bias_and_in_another_precision():
    layer = nn.Linear(8, 4, bias=False)
    check(layer, layer.weight)
    check(layer.to(torch.float8_e4m3fn), layer.weight.float())


def check(layer: nn.Linear, values: torch.Tensor) -> None:
    linear, values = FrozenLinear(layer), values.detach()
    assert (linear.out_features, linear.in_features) == values.shape
    x = torch.randn(3, linear.in_features, requires_grad=True)
    y = nn.functional.linear(x, values, None if layer.bias is None else layer.bias.detach().float())
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    assert torch.allclose(linear(x), y, atol=1e-6) and torch.equal(linear.output(x), linear(x))
    assert torch.equal(linear.output(x, out=torch.empty_like(y)), linear(x))
    assert torch.allclose(torch.autograd.grad(linear(x), x, grad)[0], expected, atol=1e-6)
    assert torch.allclose(linear.input_gradient(grad, onto=torch.ones_like(x)), expected + 1, atol=1e-6)


@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_package_that_is_missing_is_named(file, monkeypatch, quantization):
    package = PACKAGES[quantization]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"quantization is {quantization}, .* package {package} is not installed here; "
                                        rf"install it \(pip install {package}\), or set quantization to none"):
        load_transformer(file, torch.float32, CPU, quantization)


def test_a_quantisation_that_is_not_there_is_refused(file):
    with pytest.raises(UserError, match="quantization is 'int4'; choose one of none, fp8, int8, nf4"):
        load_transformer(file, torch.float32, CPU, "int4")
