"""diffusers' layers as training sees them: frozen, but the gradient of their input passes through.

A weight is asked for at each use. It may be quantised, or, where processes share the model, be there only while its
block is computed.

Shape legend: N rows (samples x tokens), D width.
"""

from __future__ import annotations

import torch
from torch import nn

from ..adapter.linears import FrozenLinearNode, times
from .quantised import plain


class FrozenLinear:
    """As the protocol of trainer/adapter/linears.py."""

    is_plain, is_skipped = True, False

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.in_features, self.out_features = module.in_features, module.out_features

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), recorded by autograd."""
        if x.requires_grad and torch.is_grad_enabled():
            return FrozenLinearNode.apply(x, self)
        return self.output(x)

    def output(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The same without autograd: a new tensor, or written to `out`."""
        with torch.no_grad():
            weight, bias = plain(self.module.weight, x.dtype), self.module.bias
            bias = None if bias is None else bias.to(x.dtype)
            if x.dim() == 2 and bias is not None:
                return torch.addmm(bias, x, weight.t(), out=out)
            y = nn.functional.linear(x, weight, bias)
            return y if out is None else out.copy_(y)

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """grad_output @ W, (..., out_features) to (..., in_features), a new tensor, or added in place to `onto`."""
        with torch.no_grad():
            return times(grad_output, plain(self.module.weight, grad_output.dtype), onto)


class FrozenNorm:
    """Weight and bias of an affine norm, (D,) each, as trainer/blocks/wan_branches.py takes them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """In the dtype of x; None each where it has none."""
        return tuple(None if value is None else value.detach().to(x.dtype)
                     for value in (getattr(self._module, name, None) for name in ("weight", "bias")))


class BothNorms:
    """The weights of the norms of q and k."""

    def __init__(self, q: nn.Module, k: nn.Module) -> None:
        self._norms = q, k

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(2, 1, D), in fp32."""
        return torch.stack([norm.weight.detach() for norm in self._norms]).float()[:, None]
