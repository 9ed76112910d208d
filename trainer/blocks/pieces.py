"""The small functions of a Wan block with as few kernels as they can have, and their gradients.

Scale, shift, gate and the norms' weights are not trained, so there are gradients of x alone.

Shape legend: B batch, L tokens, N rows (B x L), D width, H heads, d width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

aten = torch.ops.aten


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


def layer_norm_gradient(grad_ND: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Of x."""
    return aten.native_layer_norm_backward(
        grad_ND, norm.x_ND, norm.x_ND.shape[-1:], norm.mean, norm.inverse, norm.weight_D, None, [True, False, False])[0]


def modulated_norm(x_BLD: torch.Tensor, by: Modulation, eps: float) -> tuple[torch.Tensor, Norm]:
    """LayerNorm(x) scale + shift, as rows."""
    x_ND = x_BLD.flatten(0, 1)
    if len(x_BLD) == 1:  # one kernel, where scale and shift are the norm's own weight and bias
        return layer_norm(x_ND, by.scale.flatten(), by.shift.flatten(), eps)
    y_ND, norm = layer_norm(x_ND, None, None, eps)
    return torch.addcmul(by.shift, y_ND.view_as(x_BLD), by.scale).flatten(0, 1), norm


def modulated_norm_gradient(grad_ND: torch.Tensor, by: Modulation, norm: Norm) -> torch.Tensor:
    """Of x_ND."""
    if norm.weight_D is None:
        grad_ND = (grad_ND.unflatten(0, (len(by.scale), -1)) * by.scale).flatten(0, 1)
    return layer_norm_gradient(grad_ND, norm)


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> tuple[torch.Tensor, Norm]:
    """x / sqrt(mean of x^2 + eps) weight (arXiv:1910.07467)."""
    if x_ND.device.type == "cuda" and hasattr(aten, "_fused_rms_norm"):  # PyTorch 2.9 and newer
        y_ND, inverse = aten._fused_rms_norm(x_ND, x_ND.shape[-1:], weight_D, eps)
    else:
        x32_ND = x_ND.float()
        inverse = torch.rsqrt(x32_ND.square().mean(-1, keepdim=True) + eps)
        y_ND = (x32_ND * inverse).to(x_ND.dtype) * weight_D
    return y_ND, Norm(x_ND, None, inverse, weight_D)


def rms_norm_gradient(grad_ND: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Of x: with n = x / rms and g = grad weight, (g - n mean(g n)) / rms."""
    x_ND, _, inverse, weight_D = norm
    if x_ND.device.type == "cuda" and hasattr(aten, "_fused_rms_norm"):
        return aten._fused_rms_norm_backward(grad_ND, x_ND, x_ND.shape[-1:], inverse, weight_D, [True, False])[0]
    n_ND = x_ND.float() * inverse
    g_ND = (grad_ND * weight_D).float()
    share = (g_ND * n_ND).mean(-1, keepdim=True)
    return torch.addcmul(g_ND, n_ND, share, value=-1).mul_(inverse).to(x_ND.dtype)


class Rotation:
    """Rotary position embedding (Su et al., arXiv:2104.09864): pairs of values, as complex numbers, are turned.

    Args:
        matrices: (..., d/2, 2, 2), fp32: [[cos, -sin], [sin, cos]] for each token and pair.
    """

    def __init__(self, matrices: torch.Tensor) -> None:
        self._turns = torch.complex(matrices[..., 0, 0], matrices[..., 1, 0])
        self._back = self._turns.conj_physical()

    def turned(self, x_BLHd: torch.Tensor) -> torch.Tensor:
        """Computed in fp32."""
        return _turned(x_BLHd, self._turns)

    def turned_back(self, grad_BLHd: torch.Tensor) -> torch.Tensor:
        """The gradient of what was turned."""
        return _turned(grad_BLHd, self._back)


class Rotations:
    """Makes a `Rotation` of matrices, and gives the same one for the same tensor: all blocks of a step get that."""

    def __init__(self) -> None:
        self._matrices: torch.Tensor | None = None
        self._rotation: Rotation | None = None

    def __call__(self, matrices: torch.Tensor) -> Rotation:
        """Of matrices as `Rotation` takes them."""
        if matrices is not self._matrices:
            self._matrices, self._rotation = matrices, Rotation(matrices)
        return self._rotation


def gelu(x: torch.Tensor) -> torch.Tensor:
    """By tanh (arXiv:1606.08415, section 2)."""
    return functional.gelu(x, approximate="tanh")


def gelu_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of x; `grad` is overwritten with it."""
    return aten.gelu_backward(grad, x, approximate="tanh", grad_input=grad)


def _turned(x_BLHd: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x_BLHd.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x_BLHd.dtype)
