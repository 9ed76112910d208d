"""Gradients through ComfyUI's frozen layers against finite differences, and what autograd keeps for them."""

import gc
from functools import cache

import pytest
import torch
from torch.autograd import gradcheck

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, compute_in_fp32, random_batch
from wantune.trainer.base.errors import UserError

RESIDENT = "fp32"
MANAGED = {
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_scaled": {},
}
"""How the model is loaded. ComfyUI computes in fp32 with each, so it casts the blocks' weights."""
TEXT_TOKENS = 200
"""With the twenty of a usual caption, attention to the text would hardly change the loss."""
STEP = 0.02
"""Of a finite difference, relative to the norm of the matrix that is moved."""
TOLERANCE = 3e-4
"""Of a directional derivative, relative; the rounding of the fp32 forward makes up to 5e-5."""


class Case:
    """A model with an adapter, and how its loss really changes when one matrix of the adapter moves.

    Each moves in a direction of its own: its gradient, every entry at a random weight between 0 and 1.
    In an arbitrary direction the slope would be too small to be seen in fp32.
    """

    def __init__(self, model) -> None:
        self.adapted = AdaptedModel(model)
        self.network = model.model.diffusion_model
        # float64 beside the model, so that the loss itself is not rounded
        self.batch = random_batch((2, 4, 6), (0.3, 0.8), self.adapted.denoiser.device, TEXT_TOKENS).double()
        generator = torch.Generator().manual_seed(5)
        self.directions = {}
        for key, gradient in self.gradients().items():
            direction = gradient * torch.rand(gradient.shape, generator=generator).to(gradient)
            self.directions[key] = direction / direction.norm()
        with self.adapted.attached(), torch.no_grad():
            self.slopes = {key: self._slope(key) for key in self.directions}

    def gradients(self, gradient_checkpointing: bool = False) -> dict[str, torch.Tensor]:
        with self.adapted.attached(gradient_checkpointing):
            return self.adapted.gradients(self.adapted.loss_B(self.batch))

    def errors(self, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
        """Of the slope that the gradients promise, relative to the true one, for each matrix."""
        promised = {key: float((gradients[key] * self.directions[key]).sum()) for key in self.slopes}
        return {key: abs(promised[key] / slope - 1) for key, slope in self.slopes.items()}

    def _slope(self, key: str) -> float:
        adapter = self.adapted.adapter
        matrix = adapter.parameters[list(adapter.state_dict()).index(key)]
        start, step = matrix.clone(), STEP * float(matrix.norm())

        def loss_at(distance: float) -> float:
            matrix.copy_(start + distance * self.directions[key])
            return float(self.adapted.loss_B(self.batch).mean())

        near, far = (loss_at(step * n) - loss_at(-step * n) for n in (1, 2))
        matrix.copy_(start)
        return (8 * near - far) / (12 * step)  # fourth order: a step this long would bend a plain difference


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="module")
def load_case(comfy, dit_file):
    @cache
    def load(weights: str) -> Case:
        file = tools.scale_to_fp8(dit_file) if weights == "fp8_scaled" else dit_file
        model = tools.load_dit(file, **MANAGED.get(weights, {"dtype": torch.float32}))
        if weights in MANAGED:
            compute_in_fp32(model)
        return Case(model)

    return load


@pytest.fixture(params=(RESIDENT, *MANAGED))
def case(request, load_case):
    return load_case(request.param)


@pytest.fixture(params=MANAGED)
def managed(request, load_case):
    return load_case(request.param)


@pytest.fixture
def resident(load_case):
    return load_case(RESIDENT)


def is_resident(case: Case) -> list[bool]:
    """Of each Linear with an adapter, as it is while training."""
    device, dtype = case.adapted.denoiser.device, case.adapted.denoiser.compute_dtype
    assert dtype == torch.float32
    with case.adapted.attached():
        return [
            linear.is_resident(torch.empty(1, linear.in_features, device=device))
            for linear in case.adapted.linears.values()
        ]


def test_the_managed_path_is_taken_where_weights_are_cast(managed):
    assert not any(is_resident(managed))


def test_the_resident_path_is_taken_where_they_are_not(resident):
    assert all(is_resident(resident))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_agree_with_finite_differences(case, gradient_checkpointing):
    errors = case.errors(case.gradients(gradient_checkpointing))
    assert len(errors) == 2 * 10 * 2
    assert max(errors.values()) <= TOLERANCE, max(errors, key=errors.get)


def test_checkpointing_changes_no_bit_of_the_gradients(case):
    plain, checkpointed = case.gradients(), case.gradients(gradient_checkpointing=True)
    for key, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[key]), key


WRONG = {
    "a hundredth too long": lambda right, linear, grad: 1.01 * right(linear, grad),
    "a tenth too long": lambda right, linear, grad: 1.1 * right(linear, grad),
    "twice as long": lambda right, linear, grad: 2 * right(linear, grad),
    "zero": lambda right, linear, grad: torch.zeros_like(right(linear, grad)),
    "backwards": lambda right, linear, grad: -right(linear, grad),
    "of another weight": lambda right, linear, grad: right(linear, grad.roll(1, -1)),
}
"""Ways to get the gradient of a frozen layer's input wrong."""
REFUSED = list(WRONG)[1:]
"""Those that the check before training must see; it allows for layers that round their input to fp8."""


def break_gradient(monkeypatch, how: str) -> None:
    from wantune.nodes.backend.frozen import FrozenLinear

    right = FrozenLinear.input_gradient

    def wrong(linear, grad, onto=None):
        found = WRONG[how](right, linear, grad)
        return found if onto is None else onto.add_(found)

    monkeypatch.setattr(FrozenLinear, "input_gradient", wrong)


@pytest.mark.parametrize("how", WRONG)
def test_finite_differences_detect_a_wrong_gradient(managed, monkeypatch, how):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    monkeypatch.setattr(ComfyDenoiser, "_test", lambda _denoiser: None)  # it would refuse before we get to see
    break_gradient(monkeypatch, how)
    errors = managed.errors(managed.gradients())
    # what lies behind may get its gradient through the head alone, which fp8_scaled files keep in fp32
    first_block = {key: error for key, error in errors.items() if key.startswith("blocks.0.")}
    assert min(first_block.values()) > 3 * TOLERANCE, min(first_block, key=first_block.get)


@pytest.mark.parametrize("how", REFUSED)
def test_training_does_not_start_with_a_wrong_gradient(managed, monkeypatch, how):
    break_gradient(monkeypatch, how)
    with pytest.raises(UserError, match="gives no right gradient"):
        with managed.adapted.attached():
            pass


@pytest.mark.parametrize("size", [(128, 256), (1536, 1536), (1536, 8960), (8960, 1536)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_self_test_tells_right_from_wrong_at_every_size_and_precision(comfy, monkeypatch, size, dtype):
    """(1536, 8960) is the widest layer of Wan2.1 1.3B."""
    from wantune.nodes.backend import frozen, self_test

    linear = frozen.FrozenLinear(comfy_layer("manual_cast", "Linear", *size, dtype=torch.float8_e4m3fn))
    self_test.of_linears([linear], torch.device("cpu"), dtype)
    for how in REFUSED:
        with monkeypatch.context() as context:
            break_gradient(context, how)
            with pytest.raises(UserError, match="gives no right gradient"):
                self_test.of_linears([linear], torch.device("cpu"), dtype)


def test_layers_that_write_into_their_input_spoil_nothing(load_case, dit_file):
    """weight_dtype fp8_e4m3fn_fast: ComfyUI clamps the input of a Linear in place, and rounds it to fp8."""
    import comfy.ops

    plain = load_case("fp8_e4m3fn")
    expected = torch.cat([gradient.flatten() for gradient in plain.gradients().values()])
    model = tools.load_dit(dit_file, dtype=torch.float8_e4m3fn, custom_operations=comfy.ops.fp8_ops)
    compute_in_fp32(model)
    fast = AdaptedModel(model)
    for gradient_checkpointing in (False, True):
        with fast.attached(gradient_checkpointing):
            gradients = fast.gradients(fast.loss_B(plain.batch)).values()
        found = torch.cat([gradient.flatten() for gradient in gradients])
        assert torch.cosine_similarity(found, expected, dim=0) > 0.98


def saved_tensors(case: Case) -> list[torch.Tensor]:
    """What is kept of one forward pass, by autograd or by nodes of ours."""
    saved = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    def tensors() -> dict[int, torch.Tensor]:
        return {id(each): each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}

    before = tensors()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_B = case.adapted.loss_B(case.batch)
    saved += [tensor for key, tensor in tensors().items() if key not in before]
    del loss_B
    return saved


def frozen_linears(case: Case) -> dict[str, torch.nn.Module]:
    return {
        name: module
        for name, module in case.network.named_modules()
        if hasattr(module, "in_features") and name.startswith("blocks.")
    }


def weight_like(case: Case, saved: list[torch.Tensor]) -> list[torch.Tensor]:
    """The saved tensors with the shape of a frozen weight of the blocks, or of its transpose."""
    shapes = {module.weight.shape for module in frozen_linears(case).values()}
    shapes |= {shape[::-1] for shape in shapes}
    return [tensor for tensor in saved if tensor.shape in shapes]


def test_the_managed_path_keeps_no_weight(managed):
    with managed.adapted.attached():
        saved = saved_tensors(managed)
        stored = [getattr(tensor, "_qdata", tensor) for module in frozen_linears(managed).values()
                  for tensor in module.parameters()]
        model_memory = {tensor.untyped_storage().data_ptr() for tensor in stored}
    assert len(saved) > 60
    assert not [tensor.shape for tensor in saved if tensor.untyped_storage().data_ptr() in model_memory]
    assert not [tensor.shape for tensor in weight_like(managed, saved)]


def test_the_resident_path_keeps_views_of_the_weights_and_no_copy(resident):
    with resident.adapted.attached():
        saved = saved_tensors(resident)
        own = {module.weight.data_ptr() for module in frozen_linears(resident).values()}
    assert len(saved) > 60
    assert {tensor.data_ptr() for tensor in weight_like(resident, saved)} <= own


def comfy_layer(operations: str, kind: str, *sizes: int, dtype: torch.dtype) -> torch.nn.Module:
    """A layer of ComfyUI's as a loader leaves it: random, frozen, an inference tensor."""
    import comfy.ops

    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        layer = getattr(getattr(comfy.ops, operations), kind)(*sizes, dtype=dtype)
        for name, parameter in list(layer.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator) * sizes[0] ** -0.5
            setattr(layer, name, torch.nn.Parameter(value.to(dtype), requires_grad=False))
    return layer


@pytest.mark.parametrize(("operations", "dtype"), [
    ("disable_weight_init", torch.float64),
    ("manual_cast", torch.float64),
    ("manual_cast", torch.bfloat16),
    ("manual_cast", torch.float8_e4m3fn),
], ids=str)
@pytest.mark.parametrize(("kind", "sizes"), [("Linear", (6, 4)), ("LayerNorm", (6,)), ("RMSNorm", (6,))])
def test_each_layer_alone_passes_gradcheck_in_float64(comfy, operations, dtype, kind, sizes):
    from wantune.nodes.backend import frozen, frozen_norm

    layer = comfy_layer(operations, kind, *sizes, dtype=dtype)
    stand_in = (frozen.FrozenLinear if kind == "Linear" else frozen_norm.FrozenNorm)(layer)
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert stand_in.is_resident(x) == (
        operations == "disable_weight_init" or kind != "Linear" and dtype == torch.float64)
    with torch.no_grad():
        expected = layer(x)
    assert torch.equal(stand_in(x).detach(), expected)
    assert gradcheck(stand_in, (x,))


def test_the_last_layer_of_a_block_is_computed_once_and_read_by_nobody_again(resident, monkeypatch):
    """That the gradients stay bit-equal is tested above."""
    from wantune.nodes.backend.frozen import FrozenLinear

    calls = {}
    original = FrozenLinear.output

    def count(self, x, out=None):
        y = original(self, x, out)
        calls.setdefault(id(self), []).append(bool(y.isnan().any()))
        return y

    with resident.adapted.attached(True):
        last = {id(resident.adapted.linears[f"blocks.{i}.ffn.2"]) for i in range(2)}
        first = {id(resident.adapted.linears[f"blocks.{i}.ffn.0"]) for i in range(2)}
        monkeypatch.setattr(FrozenLinear, "output", count)
        resident.adapted.gradients(resident.adapted.loss_B(resident.batch))
    assert {tuple(calls[each]) for each in last} == {(False,)}
    assert {tuple(calls[each]) for each in first} == {(False, False)}
