"""Checked once before the first step: the gradient through each kind of layer, and through the branches of a block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ...trainer.base.errors import UserError
from .carried import origin
from .casting import layout_of
from .frozen import FrozenLinear, FrozenModule

ROWS = 8
ERROR = 5e-2
"""Allowed relative error of a gradient. Rounding, also of inputs to fp8, makes about 5e-3, a wrong weight about 1."""

SIZES = (0.3, 0.1)
"""Of the step of a finite difference, relative to its input: rounding blurs small ones, curvature bends large ones."""

BRANCH_ERROR = 0.5
"""Allowed relative error of a branch's gradient, with the better of the two steps."""


def of_linears(linears: Iterable[FrozenLinear], device: torch.device, dtype: torch.dtype) -> None:
    """Check each kind of layer, and each around which another pack has put a forward.

    A linear f(x) = Wx + b must give <gy, (f(v) - f(-v)) / 2> = <W^T gy, v> for any v and gy. Here gy is the difference
    itself: with a gy independent of v both sides are near 0, whatever the gradient is. f(0) would not do for b: layers
    that divide their input by its largest value give NaN there.

    Args:
        device, dtype: of the activations in training.

    Raises:
        UserError: a layer whose gradient is wrong here.
    """
    tested = set()
    generator = torch.Generator().manual_seed(0)
    for linear in linears:
        theirs = linear.theirs or linear.displaced
        kind = id(linear) if theirs else _kind(linear.module)
        if kind in tested:
            continue
        tested.add(kind)
        v = torch.randn(ROWS, linear.in_features, generator=generator).to(device, dtype)
        with torch.no_grad():
            rise = (linear(v) - linear(-v)) / 2
        error = _error(linear, v, v, rise)
        if not error <= ERROR and theirs:
            raise UserError(
                f"{origin(theirs)} is put around a layer of this model ({type(linear.module).__name__}) and gives no "
                f"right gradient (relative error {error:.2g}); connect the model from before the node that put it "
                "there.")
        if not error <= ERROR:
            raise UserError(
                f"A layer of this model ({type(linear.module).__name__}, {layout_of(linear.module)}) gives no right "
                f"gradient here (relative error {error:.2g}); load the model as bf16, fp16 or fp8.")


def _kind(module: nn.Module) -> tuple:
    """What decides how the layer computes; a checkpoint may mix several."""
    scales = [getattr(module, name, None) is not None for name in ("scale_weight", "input_scale", "pre_quant_scale")]
    return (type(module), type(module.weight), module.weight.dtype, layout_of(module),
            getattr(module, "_full_precision_mm", None), *scales)


@contextmanager
def of_branches(branches: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the context the first call of each branch of a block is checked, and the last one ends it.

    f(x + u) - f(x - u) = 2 J u for a small u, and <gy, J u> = <J^T gy, u>; gy is J u itself, as in `of_linears`. What
    is not linear, and rounding, are allowed much: this finds a gradient that is missing, whoever took it away.

    Args:
        branches: modules of one block, by name, in the order in which they are called; none adds its input.

    Raises:
        UserError: a branch whose gradient is wrong here.
    """
    stand_ins = {name: FrozenModule(module) for name, module in branches.items()}

    def checked(name: str, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        def branch(x: torch.Tensor) -> torch.Tensor:
            return stand_ins[name].original(x, *args, **kwargs)

        error = min(_branch_error(branch, x.detach(), size) for size in SIZES)
        if error > BRANCH_ERROR:
            raise UserError(
                f"{name} of this model gives no right gradient here (relative error {error:.2g}): a pack has changed "
                "how it is computed; start ComfyUI without the packs that speed up or change Wan.")
        if name == list(branches)[-1]:
            raise Checked
        return branch(x)

    try:
        for name, stand_in in stand_ins.items():
            stand_in.begin(functools.partial(checked, name))
        yield
    except Checked:
        pass
    finally:
        for stand_in in stand_ins.values():
            stand_in.end()


def difference(
    ours: Callable[..., torch.Tensor] | None, theirs: Callable[..., torch.Tensor], x: torch.Tensor, *args, **kwargs
) -> float:
    """Between two ways to compute a block, relative: of what is added to x, and of what is added to its gradient.

    0 where there is no other way than theirs.
    """
    if ours is None:
        return 0.0
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    results = []
    for function in (ours, theirs):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = function(x, *args, **kwargs)
            (grad_x,) = torch.autograd.grad(y, x, grad)
        results.append((y.detach() - x.detach(), grad_x - grad))
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*results, strict=True))


class Checked(Exception):
    """All branches were checked; the rest of the network need not be computed."""


def _branch_error(function: Callable, x: torch.Tensor, size: float) -> float:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(x.shape, generator=generator).to(x) * (size * x.float().square().mean().sqrt()).to(x.dtype)
    with torch.no_grad():
        rise = (function(x + u) - function(x - u)) / 2
    if not torch.isfinite(rise).all() or not rise.any():
        return 0.0  # such inputs tell nothing
    return _error(function, x, u, rise)


def _error(function: Callable, x: torch.Tensor, u: torch.Tensor, rise: torch.Tensor) -> float:
    """Of <J^T rise, u> against <rise, J u>, relative, where J u is the rise."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        # something of x is added, since autograd raises where there is no gradient at all
        (grad,) = torch.autograd.grad(y + 0 * x.flatten()[0], x, rise)
    expected = rise.float().square().sum()
    return float(((grad.float() * u.float()).sum() - expected).abs() / expected)
