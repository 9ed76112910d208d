"""Products with frozen weights in fp8 or int8, on cards that multiply these twice as fast as 16 bits.

Each row of x and of the gradient g (a token) is quantised with a scale of its own, W with one for each output channel:

    y_no = s_n t_o sum over i of x'_ni w'_oi,    gx_ni = s_n sum over o of (t g)'_no w'_oi

where ' is what is stored in 8 bits, s are the scales of rows and t those of W. Since g is multiplied by t before it is
quantised, one copy of W serves both. A weight that is stored in fp8 with one scale is used as it is. What the adapter
adds, and its gradients, stay in the precision of the activations.

Shape legend: N rows (samples x tokens), I in_features, O out_features, K the width that is summed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...trainer.base.errors import UserError
from ...trainer.blocks.compiled_pieces import compiler

EXACT, FP8, INT8 = PRODUCTS = ("exact", "fp8", "int8")
"""exact: in the precision of the activations, as ComfyUI computes where it does not quantise itself."""

LEAST_ROWS = 256
"""With fewer rows, such as those of the text, quantising takes longer than the product saves."""

ERROR = 0.1
"""Allowed relative error of a product with random rows. fp8 makes 0.04, int8 0.01 (0.03 with few large channels)."""

LEAST = 1e-30
"""Stands for the largest value of a row of zeros."""


@dataclass(frozen=True, slots=True)
class Weight:
    """W = values scale."""

    values_OI: torch.Tensor
    """In 8 bits, contiguous."""
    scale_O1: torch.Tensor
    """fp32."""


@dataclass(frozen=True, slots=True)
class Products:
    """How matrices are quantised and multiplied.

    Args:
        kind: FP8 or INT8.
        multiply: (a_NK, b_OK, scale_N1, scale_O1, dtype, scale) to the product (N, O) of a and b, with their scales.
        quantise: as `quantised`.
        scale: as `scaled`.
    """

    kind: str
    multiply: Callable
    quantise: Callable
    scale: Callable

    def weight(self, weight_OI: torch.Tensor) -> Weight:
        """A weight in 8 bits."""
        return Weight(*quantised(weight_OI, self.kind))

    def output(self, x_NI: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x W^T, (N, O)."""
        values_NI, scale_N1 = self.quantise(x_NI, self.kind)
        return self.multiply(values_NI, weight.values_OI, scale_N1, weight.scale_O1, x_NI.dtype, self.scale)

    def input_gradient(self, grad_NO: torch.Tensor, weight: Weight) -> torch.Tensor:
        """g W, (N, I)."""
        # the kernels take both matrices with the width that is summed over last; as int8, which all devices can turn
        turned_IO = weight.values_OI.view(torch.int8).t().contiguous().view(weight.values_OI.dtype)
        one_I1 = torch.ones(len(turned_IO), 1, device=turned_IO.device)
        values_NO, scale_N1 = self.quantise(grad_NO, self.kind, weight.scale_O1.t())
        return self.multiply(values_NO, turned_IO, scale_N1, one_I1, grad_NO.dtype, self.scale)


def products_of(kind: str, device: torch.device, compile: str) -> Products | None:
    """How products are computed on a device; None for EXACT.

    Args:
        compile: whether what is around the products is compiled, one of compiled_pieces.MODES.

    Raises:
        UserError: the device or this PyTorch has no such products.
    """
    if kind == EXACT:
        return None
    compiled = compiler(compile, device)
    for multiply in _MULTIPLY[kind]:
        products = Products(kind, multiply, compiled(quantised), compiled(scaled))
        try:
            error = _tried(products, device)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as reason:  # by PyTorch's version
            found = str(reason).strip().split("\n")[0]
            continue
        if error <= ERROR:
            return products
        found = f"the result is off by {error:.2g}"
    raise UserError(f"Products in {kind} do not work here ({found}); set products to "
                    f"{'int8 or ' if kind == FP8 else ''}exact.")


def quantised(
    x_NK: torch.Tensor, kind: str, factor_1K: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of x factor in 8 bits and scale_N1, fp32: each row's largest value becomes the largest that there is."""
    largest = 127.0 if kind == INT8 else torch.finfo(torch.float8_e4m3fn).max
    x_NK = x_NK.float() if factor_1K is None else x_NK * factor_1K
    scale_N1 = x_NK.abs().amax(-1, keepdim=True).clamp(min=LEAST) / largest
    x_NK = x_NK / scale_N1
    if kind == INT8:
        return x_NK.round().to(torch.int8), scale_N1
    return x_NK.clamp(-largest, largest).to(torch.float8_e4m3fn), scale_N1


def scaled(y_NO: torch.Tensor, scale_N1: torch.Tensor, scale_O1: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A product of values, with their scales."""
    return (y_NO * scale_N1 * scale_O1.t()).to(dtype)


def _fp8_scaled_by_kernel(a_NK, b_OK, scale_N1, scale_O1, dtype, scale):
    # PyTorch gives bf16 alone where rows have scales of their own
    return torch._scaled_mm(
        a_NK, b_OK.t(), scale_a=scale_N1, scale_b=scale_O1.t(), out_dtype=torch.bfloat16).to(dtype)


def _fp8_scaled_after(a_NK, b_OK, scale_N1, scale_O1, dtype, scale):
    one = torch.ones((), device=a_NK.device)
    y_NO = torch._scaled_mm(a_NK, b_OK.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
    return scale(y_NO, scale_N1, scale_O1, dtype)


def _int8(a_NK, b_OK, scale_N1, scale_O1, dtype, scale):
    return scale(torch._int_mm(a_NK, b_OK.t()), scale_N1, scale_O1, dtype)


_MULTIPLY = {FP8: (_fp8_scaled_by_kernel, _fp8_scaled_after), INT8: (_int8,)}
"""In the order in which they are tried: older cards and versions of PyTorch have no scales for rows."""


def _tried(products: Products, device: torch.device) -> float:
    """The relative error of an output and of a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, grad, weight = (torch.randn(LEAST_ROWS, LEAST_ROWS, generator=generator).to(device, torch.bfloat16)
                       for _ in range(3))
    in_8_bits = products.weight(weight)
    return max(error_of(products.output(x, in_8_bits), x @ weight.t()),
               error_of(products.input_gradient(grad, in_8_bits), grad @ weight))


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative."""
    return float((found.float() - truth.float()).norm() / truth.float().norm())
