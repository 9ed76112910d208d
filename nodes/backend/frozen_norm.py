"""Affine norms as training sees them: frozen, like the Linears of frozen.py."""

from __future__ import annotations

import torch
from torch import nn

from . import casting
from .frozen import FrozenModule


def is_affine_norm(module: nn.Module) -> bool:
    """A LayerNorm or RMSNorm with a weight, which autograd would keep for backward."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None


class FrozenNorm(FrozenModule):
    """An affine norm that is not trained; its weight is a few KiB, so a managed weight is copied for each call."""

    uses_own_forward = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The normalised x, of the same shape."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            with torch.no_grad():
                return self.original(x)
        module = self.module
        weight, bias = self.tensors(x)
        if isinstance(module, nn.RMSNorm):
            return nn.functional.rms_norm(x, module.normalized_shape, weight, module.eps)
        return nn.functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)

    def tensors(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias on the device and in the dtype of x, as tensors that stay."""
        return self.views() if self.is_resident(x) else self._copies(x)

    def _copies(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.no_grad():
            cast = casting.cast(self.module, x)
            try:
                return cast.weight.clone(), None if cast.bias is None else cast.bias.clone()
            finally:
                cast.give_back()


class BothNorms:
    """The weights of two norms of the same width in one tensor, which is kept while both stay where they are."""

    def __init__(self, first: FrozenNorm, second: FrozenNorm) -> None:
        self._norms = first, second
        self._of: tuple[torch.Tensor, ...] = ()
        self._both_21D: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(2, 1, D), on the device of x, in fp32."""
        weights = tuple(norm.tensors(x)[0] for norm in self._norms)
        if not self._of or any(now is not before for now, before in zip(weights, self._of, strict=True)):
            self._of, self._both_21D = weights, torch.stack(weights).float()[:, None]
        return self._both_21D
