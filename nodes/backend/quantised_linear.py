"""Frozen Linears that are multiplied in 8 bits (products.py).

Shape legend: N rows (samples x tokens), I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Iterable

import comfy.ops
import torch
from torch import nn

from ...trainer.base.errors import UserError
from . import casting
from .frozen import FrozenLinear
from .products import ERROR, FP8, LEAST_ROWS, Products, Weight, error_of

STEP = 16
"""Widths that the kernels take are multiples of it."""


class QuantisedLinear(FrozenLinear):
    """A Linear that is not trained, multiplied in 8 bits where that is faster.

    A plain weight that stays on the device gets a copy in 8 bits, which is kept. One that ComfyUI moves, patches or
    dequantises is quantised after that, for each use.
    """

    def __init__(self, module: nn.Module, products: Products) -> None:
        super().__init__(module)
        self.kind = products.kind
        self._products = products
        self._copy: Weight | None = None
        self._for_gradient: Weight | None = None

    def end(self) -> None:
        """As `FrozenModule.end`."""
        super().end()
        self._copy = None

    def let_go(self) -> None:
        """As `FrozenLinear.let_go`."""
        super().let_go()
        self._for_gradient = None

    def output(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `FrozenLinear.output`."""
        if self.is_skipped or not self._suits(x):
            return super().output(x, out=out)
        with torch.no_grad():
            x_NI = x.flatten(0, -2)
            if self.is_resident(x):
                y_NO = _with_bias(self._products.output(x_NI, self._resident()), self.views()[1])
            else:
                y_NO = self._of_cast(x_NI, self.keeps_cast and self.hands_on)
            y = y_NO.view(*x.shape[:-1], -1)
            return y if out is None else out.copy_(y)

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """As `FrozenLinear.input_gradient`."""
        if not self._suits(grad_output):
            return super().input_gradient(grad_output, onto)
        with torch.no_grad():
            if self.is_resident(grad_output):
                grad_NI = self._products.input_gradient(grad_output.flatten(0, -2), self._resident())
            else:
                grad_NI = self._gradient_of_cast(grad_output.flatten(0, -2))
            grad_input = grad_NI.view(*grad_output.shape[:-1], -1)
            return grad_input if onto is None else onto.add_(grad_input)

    def _suits(self, x: torch.Tensor) -> bool:
        return x.numel() >= LEAST_ROWS * x.shape[-1] and self.displaced is None and _fits(self.module)

    def _resident(self) -> Weight:
        if self._copy is None:
            self._copy = self._products.weight(self.views()[0])
        return self._copy

    def _of_cast(self, x_NI: torch.Tensor, keeps: bool) -> torch.Tensor:
        comfy.ops.run_every_op()  # the user may have interrupted
        cast = self._cast(x_NI)
        try:
            weight = self._weight(cast, x_NI.dtype)
            y_NO = _with_bias(self._products.output(x_NI, weight), cast.bias)
        except BaseException:
            cast.give_back()
            raise
        if keeps:
            self.let_go()
        if keeps and self._is_used_as_it_is:
            cast.keep()
            self._kept = cast
            return y_NO
        cast.give_back()
        self._for_gradient = weight if keeps else None
        return y_NO

    def _gradient_of_cast(self, grad_NO: torch.Tensor) -> torch.Tensor:
        weight, self._for_gradient = self._for_gradient, None
        if weight is not None:
            return self._products.input_gradient(grad_NO, weight)
        cast, self._kept = self._kept or self._cast(grad_NO), None
        try:
            return self._products.input_gradient(grad_NO, self._weight(cast, grad_NO.dtype))
        finally:
            cast.give_back()

    @property
    def _is_used_as_it_is(self) -> bool:
        return (self._products.kind == FP8 and _fp8_scale(self.module.weight) is not None
                and not casting.changes_in_cast(self.module))

    def _cast(self, like: torch.Tensor) -> casting.Cast:
        return (casting.moved if self._is_used_as_it_is else casting.cast)(self.module, like)

    def _weight(self, cast: casting.Cast, dtype: torch.dtype) -> Weight:
        if self._is_used_as_it_is:
            values_OI, scale = getattr(cast.weight, "_qdata", cast.weight), _fp8_scale(cast.weight)
            weight = Weight(values_OI, scale.to(values_OI.device).float().expand(len(values_OI), 1).contiguous())
        else:
            weight = self._products.weight(casting.plain(cast.weight, dtype))
        scale = getattr(self.module, "scale_weight", None)
        # fp8_scaled in older versions: the weight is stored divided by this scale
        return weight if scale is None else Weight(weight.values_OI, weight.scale_O1 * scale.to(weight.scale_O1))


def copied_bytes(linears: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Of the copies that are kept of these layers' weights, if all stay on the device: a byte for each value, and 4 for
    each row.

    Args:
        dtype: of the activations.
    """
    plain = (linear for linear in linears if type(linear.weight) in (nn.Parameter, torch.Tensor))
    return sum(linear.out_features * (linear.in_features + 4) for linear in plain
               if linear.weight.dtype == dtype and _fits(linear))


def measure(linears: Iterable[FrozenLinear], device: torch.device, dtype: torch.dtype) -> str | None:
    """Compare products in 8 bits with exact ones, for random rows and each Linear; None where none is in 8 bits.

    Args:
        dtype: of the activations.

    Returns:
        A sentence for the user.

    Raises:
        UserError: one is off by more than ERROR.
    """
    errors = {}
    generator = torch.Generator().manual_seed(0)
    for linear in linears:
        if not isinstance(linear, QuantisedLinear):
            continue
        x_NI, grad_NO = (torch.randn(LEAST_ROWS, width, generator=generator).to(device, dtype)
                         for width in (linear.in_features, linear.out_features))
        bias = FrozenLinear.output(linear, torch.zeros_like(x_NI[:1]))
        exact_NO = FrozenLinear.output(linear, x_NI) - bias
        errors[linear] = (error_of(linear.output(x_NI) - bias, exact_NO),
                          error_of(linear.input_gradient(grad_NO), FrozenLinear.input_gradient(linear, grad_NO)))
    if not errors:
        return None
    worst = max(errors, key=lambda linear: max(errors[linear]))
    if not max(errors[worst]) <= ERROR:
        raise UserError(f"Products in {worst.kind} are off by {max(errors[worst]):.1%} in a layer of this model, more "
                        f"than {ERROR:.0%}; set products to {'int8 or ' if worst.kind == FP8 else ''}exact.")
    output, gradient = (sum(both) / len(errors) for both in zip(*errors.values(), strict=True))
    return (f"Products of the model's weights are computed in {worst.kind}: results are off by {output:.1%}, "
            f"gradients by {gradient:.1%} (random rows, {len(errors)} layers, at most {max(errors[worst]):.1%}).")


def _fits(linear: nn.Module) -> bool:
    is_of_another_layout = hasattr(linear.weight, "_qdata") and _fp8_scale(linear.weight) is None
    return not (linear.in_features % STEP or linear.out_features % STEP or is_of_another_layout
                or getattr(linear, "pre_quant_scale", None) is not None)


def _with_bias(y_NO: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return y_NO if bias_O is None else y_NO.add_(bias_O)


def _fp8_scale(weight: torch.Tensor) -> torch.Tensor | None:
    """The one scale of a weight that is stored in e4m3; None of any other."""
    values = getattr(weight, "_qdata", weight)
    if values.dtype != torch.float8_e4m3fn:
        return None
    if values is weight:
        return torch.ones((), device=weight.device)
    params = getattr(weight, "_params", None)
    scale = weight._layout_params["scale"] if params is None else params.scale  # 0.3.75, and newer
    return scale if scale.numel() == 1 else None
