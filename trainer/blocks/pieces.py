"""The small functions of a Wan block with as few kernels as they can have, and their gradients.

Scale, shift, gate and the norms' weights are not trained, so there are gradients of x alone. Those that take several
kernels are handed to the branches as `Pieces`, since compiled_pieces.py makes one kernel of each.

Shape legend: B batch, L tokens, N rows (B x L), D width, H heads, d width of a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch.nn import functional

aten = torch.ops.aten

Value = TypeVar("Value")


class Modulation(NamedTuple):
    """Of a branch by the noise level: (B, 1, D) each (Peebles and Xie, arXiv:2212.09748, section 3.2)."""

    shift: torch.Tensor
    scale: torch.Tensor
    """With the 1 already added."""
    gate: torch.Tensor


class Norm(NamedTuple):
    """What the gradient of a norm needs."""

    x_ND: torch.Tensor
    mean: torch.Tensor | None
    inverse: torch.Tensor
    """One over the standard deviation, or over the root mean square."""
    weight_D: torch.Tensor | None


def layer_norm(
    x_ND: torch.Tensor, weight_D: torch.Tensor | None, bias_D: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, Norm]:
    """LayerNorm over D (arXiv:1607.06450)."""
    y_ND, mean, inverse = aten.native_layer_norm(x_ND, x_ND.shape[-1:], weight_D, bias_D, eps)
    return y_ND, Norm(x_ND, mean, inverse, weight_D)


def layer_norm_gradient(grad_ND: torch.Tensor, norm: Norm, onto_BLD: torch.Tensor) -> torch.Tensor:
    """Of x, plus another gradient of it: a new tensor (B, L, D)."""
    grad_ND = aten.native_layer_norm_backward(
        grad_ND, norm.x_ND, norm.x_ND.shape[-1:], norm.mean, norm.inverse, norm.weight_D, None, [True, False, False])[0]
    return grad_ND.view_as(onto_BLD).add_(onto_BLD)


def modulated_norm(x_BLD: torch.Tensor, by: Modulation, eps: float) -> tuple[torch.Tensor, Norm]:
    """LayerNorm(x) scale + shift, as rows."""
    x_ND = x_BLD.flatten(0, 1)
    if len(x_BLD) == 1:  # one kernel, where scale and shift are the norm's own weight and bias
        return layer_norm(x_ND, by.scale.flatten(), by.shift.flatten(), eps)
    y_ND, norm = layer_norm(x_ND, None, None, eps)
    return torch.addcmul(by.shift, y_ND.view_as(x_BLD), by.scale).flatten(0, 1), norm


def modulated_norm_gradient(
    grad_ND: torch.Tensor, by: Modulation, norm: Norm, onto_BLD: torch.Tensor
) -> torch.Tensor:
    """Of x, plus another gradient of it: a new tensor (B, L, D)."""
    if norm.weight_D is None:
        grad_ND = (grad_ND.view_as(onto_BLD) * by.scale).flatten(0, 1)
    return layer_norm_gradient(grad_ND, norm, onto_BLD)


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor | None, eps: float) -> tuple[torch.Tensor, Norm]:
    """x / sqrt(mean of x^2 + eps) weight (arXiv:1910.07467)."""
    if rms_norm_is_fused(x_ND.device):
        y_ND, inverse = aten._fused_rms_norm(x_ND, x_ND.shape[-1:], weight_D, eps)
    else:
        length = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(length.square_().div_(x_ND.shape[-1]).add_(eps))
        y_ND = (x_ND * inverse).to(x_ND.dtype)
        if weight_D is not None:
            y_ND.mul_(weight_D)
    return y_ND, Norm(x_ND, None, inverse, weight_D)


def rms_norm_gradient(grad_ND: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Of x: with n = x / rms and g = grad weight, (g - n mean(g n)) / rms."""
    x_ND, _, inverse, weight_D = norm
    if rms_norm_is_fused(x_ND.device):
        return aten._fused_rms_norm_backward(grad_ND, x_ND, x_ND.shape[-1:], inverse, weight_D, [True, False])[0]
    n_ND = x_ND * inverse
    g_ND = (grad_ND if weight_D is None else grad_ND * weight_D).float()
    share = (g_ND * n_ND).mean(-1, keepdim=True)
    return torch.addcmul(g_ND, n_ND, share, value=-1).mul_(inverse).to(x_ND.dtype)


def rms_norm_is_fused(device: torch.device) -> bool:
    """Whether PyTorch has one kernel for it: 2.9 and newer, on a GPU."""
    return device.type == "cuda" and hasattr(aten, "_fused_rms_norm")


class Rotation:
    """Rotary position embedding (Su et al., arXiv:2104.09864): pairs of values, as complex numbers, are turned.

    Args:
        matrices: (1, L, 1, d/2, 2, 2), fp32: [[cos, -sin], [sin, cos]] for each token and pair.
    """

    def __init__(self, matrices: torch.Tensor) -> None:
        self._turns = torch.complex(matrices[..., 0, 0], matrices[..., 1, 0])
        self._back = self._turns.conj_physical()
        self._pairs = torch.view_as_real(self._turns)  # (cos, sin), in the same memory

    def turn(self, x_2ND: torch.Tensor, is_back: bool = False) -> torch.Tensor:
        """x as (2, B, L, H, d), turned, or turned back as its gradient is; x is fp32, and may be overwritten."""
        _, tokens, _, pairs, _ = self._pairs.shape
        x = x_2ND.view(2, -1, tokens, x_2ND.shape[-1] // (2 * pairs), pairs, 2)
        if torch.compiler.is_compiling():  # PyTorch's compiler makes no code of complex numbers
            cos, sin = self._pairs.split(1, -1)
            signs = 1 - 2 * torch.arange(2, device=x.device) if is_back else 2 * torch.arange(2, device=x.device) - 1
            x = x * cos + x.flip(-1) * (sin * signs)  # (real cos - imaginary sin, imaginary cos + real sin)
        else:
            torch.view_as_complex(x).mul_(self._back if is_back else self._turns)
        return x.flatten(-2)


class Shared(Generic[Value]):
    """What is made of a tensor once, and given again for the same tensor: all blocks of a step get it.

    It is let go of with the tensor, which the forward pass of the network ends; what backward needs is kept there.

    Args:
        make: of a tensor, and of what else it is called with.
    """

    def __init__(self, make: Callable[..., Value]) -> None:
        self._make = make
        self._source: weakref.ref[torch.Tensor] | None = None
        self._made: Value | None = None

    def __call__(self, source: torch.Tensor, *rest) -> Value:
        """As `make` gives it."""
        if self._source is None or self._source() is not source:
            self._made = self._make(source, *rest)
            self._source = weakref.ref(source, self._forget)
        return self._made

    def _forget(self, source: weakref.ref[torch.Tensor]) -> None:
        if source is self._source:
            self._source = self._made = None


class Rotations(Shared[Rotation]):
    """Of matrices as `Rotation` takes them."""

    def __init__(self) -> None:
        super().__init__(Rotation)


def turned_norms(
    qk_2ND: torch.Tensor, weights_21D: torch.Tensor, rotation: Rotation, eps: float
) -> tuple[torch.Tensor, Norm]:
    """q and k (2, B, L, H, d), rotated after their RMS norms, whose weights are fp32."""
    n_2ND, norm = rms_norm(qk_2ND, None, eps)
    return rotation.turn(n_2ND * weights_21D).to(qk_2ND.dtype), norm


def turned_norms_gradient(
    grad_q_BLHd: torch.Tensor, grad_k_BLHd: torch.Tensor, grad_v_BLHd: torch.Tensor, weights_21D: torch.Tensor,
    rotation: Rotation, norm: Norm
) -> torch.Tensor:
    """Of q, k and v before all that, (3, N, D)."""
    qk_2ND, dtype = norm.x_ND, grad_v_BLHd.dtype
    grad_2BLHd = grad_q_BLHd.new_empty(2, *grad_q_BLHd.shape, dtype=torch.float32)
    torch._foreach_copy_(grad_2BLHd.unbind(), (grad_q_BLHd, grad_k_BLHd))  # one kernel
    turned = rotation.turn(grad_2BLHd.view(qk_2ND.shape), is_back=True)
    grad_2ND = turned.view(qk_2ND.shape)
    grad_2ND = torch.mul(grad_2ND, weights_21D, out=grad_2ND if dtype == torch.float32 else torch.empty_like(qk_2ND))
    del grad_2BLHd, turned
    grad_2ND = rms_norm_gradient(grad_2ND, norm)
    # heads apart, since kernels join tensors of at most four dimensions
    of_all = torch.cat((grad_2ND.view(-1, *grad_v_BLHd.shape[1:]), grad_v_BLHd))
    return of_all.view(3, *qk_2ND.shape[1:])


def gelu(x: torch.Tensor) -> torch.Tensor:
    """By tanh (arXiv:1606.08415, section 2)."""
    return functional.gelu(x, approximate="tanh")


def gelu_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of x; `grad` is overwritten with it."""
    return aten.gelu_backward(grad, x, approximate="tanh", grad_input=grad)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The functions of this file that take several kernels; as they are, or compiled."""

    modulated_norm: Callable = modulated_norm
    modulated_norm_gradient: Callable = modulated_norm_gradient
    layer_norm_gradient: Callable = layer_norm_gradient
    rms_norm: Callable = rms_norm
    rms_norm_gradient: Callable = rms_norm_gradient
    turned_norms: Callable = turned_norms
    turned_norms_gradient: Callable = turned_norms_gradient
