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
