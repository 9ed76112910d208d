"""Small pure functions of a Wan block with as few kernels as they can have; gradients of their first argument alone.

Shape legend: B batch, L tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def modulated_norm(x_BLD: torch.Tensor, scale_B1D: torch.Tensor, shift_B1D: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm(x) scale + shift (Peebles and Xie, arXiv:2212.09748, section 3.2; `scale` has the 1 added already)."""
    if len(x_BLD) == 1:  # one kernel, where scale and shift are the norm's own weight and bias
        return functional.layer_norm(x_BLD, x_BLD.shape[-1:], scale_B1D.flatten(), shift_B1D.flatten(), eps)
    return torch.addcmul(shift_B1D, functional.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps), scale_B1D)


class Rotation:
    """Rotary position embedding (Su et al., arXiv:2104.09864): pairs of values, as complex numbers, are turned.

    Args:
        matrices: (..., d/2, 2, 2), fp32: [[cos, -sin], [sin, cos]] for each token and pair.
    """

    def __init__(self, matrices: torch.Tensor) -> None:
        self.turns = torch.complex(matrices[..., 0, 0], matrices[..., 1, 0])
        self.back = self.turns.conj_physical()

    def __call__(self, x_BLHd: torch.Tensor) -> torch.Tensor:
        """x, turned; computed in fp32."""
        return _Rotated.apply(x_BLHd, self)


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


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BLHd: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        ctx.rotation = rotation
        return _turned(x_BLHd, rotation.turns)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BLHd: torch.Tensor):
        return _turned(grad_BLHd, ctx.rotation.back), None


def _turned(x_BLHd: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x_BLHd.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x_BLHd.dtype)
