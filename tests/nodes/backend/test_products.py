"""Products in fp8 and int8: against the same arithmetic in fp32, and what training makes of them.

On a CPU PyTorch's own `_scaled_mm` and `_int_mm` run: these tests say that results are right, not that they are fast.
"""

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, compute_in_fp32, random_batch
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.plan import BRANCH, EVERYTHING, Plan

CPU = torch.device("cpu")
KINDS = ("fp8", "int8")
ROUNDING = 4e-3
"""Relative: one rounding to bf16, in which the fp8 kernel gives its result."""
GRADIENT = {"fp8": 0.06, "int8": 0.02}
"""Relative error of all gradients of the adapter together; measured 0.045 (0.014 where the weight is fp8) and 0.015."""
LOSS = {"fp8": 6e-3, "int8": 1.5e-3}
"""Relative difference of losses in twenty steps of training; measured 4.5e-3 and 8e-4."""
SIZE_FHW = (1, 32, 32)  # 256 tokens: as many as products in 8 bits need


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.float() - truth.float()).norm() / truth.float().norm())


@pytest.fixture(scope="module")
def backend(comfy):
    from wantune.nodes.backend import products, quantised_linear

    return products, quantised_linear


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("products"), layers=3)


def load(dit_file, weights: str, **options) -> AdaptedModel:
    model = (tools.load_dit(tools.scale_to_fp8(dit_file)) if weights == "fp8_scaled"
             else tools.load_dit(dit_file, dtype=getattr(torch, weights)))
    compute_in_fp32(model)
    return AdaptedModel(model, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_that_of_the_quantised_matrices(backend, kind, dtype):
    products = backend[0].products_of(kind, CPU, "off")
    x_NI, weight_OI, grad_NO = (random(*shape, seed=seed).to(dtype)
                                for seed, shape in enumerate(((300, 64), (48, 64), (300, 48))))
    weight_OI *= torch.logspace(-3, 0, 48)[:, None].to(dtype)  # output channels of very different sizes
    weight = products.weight(weight_OI)
    whole_OI = weight.values_OI.float() * weight.scale_O1
    assert relative(whole_OI, weight_OI) <= 0.04
    values, scale = backend[0].quantised(x_NI, kind)
    found = products.output(x_NI, weight)
    assert found.dtype == dtype and relative(found, (values.float() * scale) @ whole_OI.t()) <= ROUNDING
    assert relative(found, x_NI.float() @ weight_OI.float().t()) <= 0.05
    values, scale = backend[0].quantised(grad_NO.float() * weight.scale_O1.t(), kind)
    found = products.input_gradient(grad_NO, weight)
    assert found.dtype == dtype and relative(found, (values.float() * scale) @ weight.values_OI.float()) <= ROUNDING
    assert relative(found, grad_NO.float() @ weight_OI.float()) <= 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_a_scale_of_its_own(backend, kind):
    products = backend[0].products_of(kind, CPU, "off")
    x_NI = random(300, 64)
    weight = products.weight(random(48, 64, seed=1))
    before = products.output(x_NI, weight)
    x_NI[0] *= 1e4
    x_NI[1] = 0
    after = products.output(x_NI, weight)
    assert torch.equal(after[2:], before[2:]) and not after[1].any()
    assert relative(after[0], 1e4 * before[0]) <= ROUNDING


def test_older_cards_scale_after_the_product(backend, monkeypatch):
    products = backend[0]
    by_kernel = products.products_of("fp8", CPU, "off")

    def without_rows(*args, scale_a, **options):
        if scale_a.numel() > 1:
            raise RuntimeError("no scales for rows")
        return scaled_mm(*args, scale_a=scale_a, **options)

    scaled_mm = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", without_rows)
    after = products.products_of("fp8", CPU, "off")
    assert after.multiply is not by_kernel.multiply
    x_NI, weight = random(300, 64), after.weight(random(48, 64, seed=1))
    found = after.output(x_NI, weight)
    monkeypatch.undo()
    assert relative(by_kernel.output(x_NI, weight), found) <= ROUNDING


def test_where_they_do_not_work_it_is_said(backend, monkeypatch):
    def missing(*args, **options):
        raise RuntimeError("needs compute capability 8.9\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    with pytest.raises(UserError, match=r"fp8 do not work here \(needs compute capability 8.9\); .* int8 or exact"):
        backend[0].products_of("fp8", CPU, "off")
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.zeros(len(a), b.shape[1], dtype=torch.int32))
    with pytest.raises(UserError, match=r"int8 do not work here \(the result is off by 1\); set products to exact"):
        backend[0].products_of("int8", CPU, "off")


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float8_e4m3fn", "fp8_scaled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [Plan(whole_blocks=EVERYTHING), Plan(segments=BRANCH)], ids=["whole", "branch"])
def test_gradients_are_near_the_exact_ones(dit_file, kind, weights, plan):
    batch = random_batch(SIZE_FHW, (0.4,), CPU)
    found, told = {}, {}
    for products in ("exact", kind):
        adapted = load(dit_file, weights, products=products)
        with adapted.attached(plan) as told[products]:
            found[products] = torch.cat([grad.flatten() for grad in adapted.gradients(adapted.loss_B(batch)).values()])
    error = relative(found[kind], found["exact"])
    print(f"{kind}, {weights}: gradients off by {error:.3f}")
    assert 1e-3 < error <= GRADIENT[kind]
    (sentence,) = told[kind]
    assert told["exact"] == ()
    assert sentence.startswith(f"Products of the model's weights are computed in {kind}: results are off by ")
    assert "30 layers" in sentence


def test_a_weight_that_is_in_fp8_is_used_as_it_is(dit_file, backend):
    for weights in ("float8_e4m3fn", "fp8_scaled"):
        adapted = load(dit_file, weights, products="fp8")
        with adapted.attached(), torch.no_grad():
            for linear in adapted.linears.values():
                x_NI = random(256, linear.in_features)
                values, scale = backend[0].quantised(x_NI, "fp8")
                one = backend[1].FrozenLinear.output(linear, torch.eye(linear.in_features))
                bias = backend[1].FrozenLinear.output(linear, torch.zeros(1, linear.in_features))
                assert relative(linear.output(x_NI), (values.float() * scale) @ (one - bias) + bias) <= ROUNDING


@pytest.mark.parametrize("weights, has_copy", [("float32", True), ("bfloat16", False), ("float8_e4m3fn", False)])
def test_the_copy_of_a_weight_that_stays_is_counted_before_and_let_go_of(dit_file, weights, has_copy):
    adapted = load(dit_file, weights, products="fp8")
    linears = adapted.linears.values()
    expected = adapted.denoiser.size.copies
    values = sum(linear.in_features * linear.out_features for linear in linears)
    assert expected == (values + 4 * sum(linear.out_features for linear in linears) if has_copy else 0)
    with adapted.attached():
        adapted.gradients(adapted.loss_B(random_batch(SIZE_FHW, (0.4,), CPU)))
        copies = [linear._copy for linear in linears if linear._copy is not None]
        assert sum(part.numel() * part.element_size() for copy in copies
                   for part in (copy.values_OI, copy.scale_O1)) == expected
    assert not any(linear._copy or linear._for_gradient or linear._kept for linear in linears)


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_end_near_the_exact_ones(dit_file, kind):
    batches = [random_batch(SIZE_FHW, (0.4,), CPU), random_batch((1, 16, 32), (0.2, 0.8), CPU)]
    losses, adapter = load(dit_file, "float32").trained(Plan(), batches)
    others, other = load(dit_file, "float32", products=kind).trained(Plan(), batches)
    errors = [abs(a / b - 1) for a, b in zip(others, losses, strict=True)]
    print(f"{kind}: losses off by at most {max(errors):.2e}, the adapter by {relative(other, adapter):.2e}")
    assert losses[-2] < losses[0] and 0 < max(errors) <= LOSS[kind]


def test_products_that_are_too_wrong_are_refused_and_the_model_is_as_before(dit_file, backend, monkeypatch):
    monkeypatch.setattr(backend[1], "ERROR", 1e-3)
    adapted = load(dit_file, "float32", products="int8")
    with pytest.raises(UserError, match="int8 are off by .* set products to exact"), adapted.attached():
        pass
    assert not any("forward" in linear.module.__dict__ or linear._copy for linear in adapted.linears.values())


def test_few_rows_and_exact_products_are_computed_as_before(dit_file, backend):
    adapted = load(dit_file, "float32", products="fp8")
    with adapted.attached(), torch.no_grad():
        for linear in adapted.linears.values():
            x_NI, grad_NO = random(255, linear.in_features), random(255, linear.out_features)
            exact = backend[1].FrozenLinear
            assert torch.equal(linear.output(x_NI), exact.output(linear, x_NI))
            assert torch.equal(linear.input_gradient(grad_NO), exact.input_gradient(linear, grad_NO))
    assert backend[0].products_of("exact", CPU, "off") is None
