"""Linears with the same input, and their gradients step by step: what a block's branches are written with.

A `Linears` gives outputs together with what it needs for the gradient, and later the gradient; no autograd between.
What has no gradient of its own here (LoKr, LoHa, dropout, another pack's forward around a layer) is recorded by
autograd for itself alone.

Shape legend: N rows (samples x tokens), I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Saved = list | tuple | None
"""What one computation keeps for its gradient, which takes it out of a list; None where no gradient follows."""

Outputs = torch.Tensor | Sequence[torch.Tensor | None]
"""(N, O) of each Linear; several of the same width as one tensor (g, N, O), whose products are one kernel."""

Keeping = Callable[[Callable[[], torch.Tensor]], torch.Tensor]
"""Gives what a function computes, or what it gave in an earlier computation."""


class FrozenLinear(Protocol):
    """A Linear of the model whose weight is not trained; the gradient flows through to its input."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), recorded by autograd."""

    def output(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The same without autograd: a new tensor, or written to `out`; x is not changed."""

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """grad_output @ W, (..., out_features) to (..., in_features), a new tensor, or added in place to `onto`."""

    @property
    def is_plain(self) -> bool:
        """Whether `output` and `input_gradient` are all there is; False where autograd must record another's forward.
        """

    @property
    def is_skipped(self) -> bool:
        """Whether its output is not read at the moment, because a checkpointed part is computed again."""


class FrozenLinearNode(torch.autograd.Function):
    """y = W x + b, saving nothing for backward but the layer: with W frozen, grad_x = grad_y @ W needs no x."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, linear: FrozenLinear) -> torch.Tensor:
        ctx.linear = linear
        return linear.output(x.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        return ctx.linear.input_gradient(grad_output), None


def times(grad_output: torch.Tensor, weight: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
    """grad_output @ weight, a new tensor, or added in place to `onto`."""
    if onto is None:
        return grad_output @ weight
    onto.flatten(0, -2).addmm_(grad_output.flatten(0, -2), weight)
    return onto


class Linears(Protocol):
    """Some Linears with the same input."""

    @property
    def can_wait(self) -> bool:
        """Whether what `forward` saves is small, and right also in a later computation of the block."""

    def forward(
        self, x_NI: torch.Tensor, saves: bool, reads: bool = True, kept: Keeping | None = None
    ) -> tuple[Outputs, Saved]:
        """The outputs (N, O), and what `backward` needs.

        Args:
            saves: whether `backward` follows.
            reads: whether the outputs are read; they may be None otherwise.
            kept: for what is small enough to be kept; None where nothing is.
        """

    def backward(self, saved: Saved, grads_NO: Outputs, needs_x: bool) -> torch.Tensor | None:
        """The gradient of x_NI, a new tensor, if it is asked for; parameters get theirs in any case."""


class Frozen:
    """Linears without an adapter; nothing is saved but where another pack's forward is around one."""

    def __init__(self, linears: Sequence[FrozenLinear]) -> None:
        self._linears = linears
        self._recorded = Recorded(lambda x: tuple(linear(x) for linear in linears))

    @property
    def can_wait(self) -> bool:
        """As `Linears`."""
        return all(linear.is_plain for linear in self._linears)

    def forward(self, x_NI, saves, reads=True, kept=None):
        """As `Linears`."""
        if not self.can_wait:
            return self._recorded.forward(x_NI, saves, reads)
        return outputs(self._linears, x_NI) if reads else (None,) * len(self._linears), ()

    def backward(self, saved, grads_NO, needs_x):
        """As `Linears`."""
        if not needs_x:
            return None
        if saved:
            return self._recorded.backward(saved, grads_NO, needs_x)
        grad_NI = None
        for linear, grad_NO in zip(self._linears, grads_NO, strict=True):
            grad_NI = linear.input_gradient(grad_NO, grad_NI)
        return grad_NI


def outputs(linears: Sequence[FrozenLinear], x_NI: torch.Tensor) -> Outputs:
    """Of Linears without an adapter."""
    if len(linears) == 1 or len({linear.out_features for linear in linears}) > 1:
        return tuple(linear.output(x_NI) for linear in linears)
    ys_gNO = x_NI.new_empty(len(linears), len(x_NI), linears[0].out_features)
    for linear, y_NO in zip(linears, ys_gNO.unbind(), strict=True):
        linear.output(x_NI, out=y_NO)
    return ys_gNO


class Recorded:
    """Linears given by one function, whose gradient autograd takes.

    Args:
        function: x (N, I) to a tuple of outputs.
    """

    can_wait = False

    def __init__(self, function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        self._function = function

    def forward(self, x_NI, saves, reads=True, kept=None):
        """As `Linears`."""
        if not saves:
            with torch.no_grad():
                return self._function(x_NI), None
        with torch.enable_grad():
            x_NI = x_NI.detach().requires_grad_()
            ys_NO = self._function(x_NI)
        return tuple(y_NO.detach() for y_NO in ys_NO), (x_NI, ys_NO)

    def backward(self, saved, grads_NO, needs_x):
        """As `Linears`."""
        x_NI, ys_NO = saved
        torch.autograd.backward(ys_NO, tuple(grads_NO))
        return x_NI.grad


class Several:
    """Linears that are computed one after the other."""

    def __init__(self, parts: Sequence[Linears]) -> None:
        self._parts = parts

    @property
    def can_wait(self) -> bool:
        """As `Linears`."""
        return all(part.can_wait for part in self._parts)

    def forward(self, x_NI, saves, reads=True, kept=None):
        """As `Linears`."""
        results = [part.forward(x_NI, saves, reads, kept) for part in self._parts]
        return tuple(ys_NO[0] for ys_NO, _ in results), tuple(saved for _, saved in results)

    def backward(self, saved, grads_NO, needs_x):
        """As `Linears`."""
        grad_NI = None
        for part, its_own, grad_NO in zip(self._parts, saved, grads_NO, strict=True):
            more_NI = part.backward(its_own, (grad_NO,), needs_x)
            if more_NI is not None:
                grad_NI = more_NI if grad_NI is None else grad_NI.add_(more_NI)
        return grad_NI
