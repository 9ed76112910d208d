"""LoRA beside frozen Linears as one autograd node: no autocast, no copy of the output, no gradient of W.

For Linears i with the same input x, where s = alpha / rank (arXiv:2106.09685):

    y_i = W_i x + b_i + s B_i A_i x
    dL/dx = sum of (g_i W_i + s g_i B_i A_i),  dL/dB_i = s g_i^T (x A_i^T),  dL/dA_i = s (g_i B_i)^T x

The A_i lie one below the other, so x is multiplied by all of them at once, and so are the gradients. The gradients of A
and B are not returned to autograd but written where the optimizer reads them (block_parameters.py): one kernel each.

Shape legend: N rows (samples x tokens), I in_features, O out_features, r rank, g Linears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from .block_parameters import BlockParameters, Values


class FrozenLinear(Protocol):
    """A Linear of the model whose weight is not trained; the gradient flows through to its input."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), recorded by autograd."""

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """The same without autograd: a new tensor, x is not changed."""

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """grad_output @ W, (..., out_features) to (..., in_features), a new tensor, or added in place to `onto`."""

    @property
    def is_plain(self) -> bool:
        """Whether `output` and `input_gradient` are all there is; False where autograd must record another's forward.
        """

    @property
    def is_skipped(self) -> bool:
        """Whether its output is not read at the moment, because a checkpointed part is computed again."""


@dataclass(slots=True)
class Switch:
    """Whether adapters act at all, and whether their dropout does."""

    is_on: bool = True
    drops: bool = False


class LoraLinears:
    """LoRA over Linears that have the same input.

    Args:
        names: of the Linears, as in the parameters' names `<name>.lora_A.weight`.
        parameters: of the block; the A of these Linears follow each other.
        scale: s.
        dropout: probability that a value of A's input is zeroed, drawn for each Linear by itself.
    """

    def __init__(
        self, names: Sequence[str], linears: Sequence[FrozenLinear], parameters: BlockParameters, scale: float,
        dropout: float, switch: Switch
    ) -> None:
        self.linears = tuple(linears)
        self.parameters = parameters
        self.names_a = tuple(f"{name}.lora_A.weight" for name in names)
        self.names_b = tuple(f"{name}.lora_B.weight" for name in names)
        self.scale = scale
        self._dropout = dropout
        self._switch = switch

    @property
    def are_adjacent(self) -> bool:
        """Whether the A lie one below the other without a gap, as they must."""
        return self.parameters.are_adjacent(self.names_a)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """y_i of each Linear, (..., O_i), for x (..., I)."""
        if not self._switch.is_on:
            return tuple(linear(x) for linear in self.linears)
        values = self.parameters.values(x.dtype)
        if self._switch.drops and self._dropout:
            return tuple(self._added((index,), x, functional.dropout(x, self._dropout), values)[0]
                         for index in range(len(self.linears)))
        if all(linear.is_plain for linear in self.linears):
            return self._added(tuple(range(len(self.linears))), x, x, values)
        return tuple(self._added((index,), x, x, values)[0] for index in range(len(self.linears)))

    def _added(
        self, chosen: tuple[int, ...], x: torch.Tensor, dropped: torch.Tensor, values: Values
    ) -> tuple[torch.Tensor, ...]:
        """For the chosen Linears; `dropped` is what A gets, x itself without dropout."""
        group = _Group(self, chosen, values, self.linears[chosen[0]].is_plain)
        base = () if group.has_base else tuple(self.linears[index](x) for index in chosen)
        if not torch.is_grad_enabled():
            ys = group.outputs(x, dropped)[0]
        else:
            ys = _LoraNode.apply(self.parameters.trigger, x, None if dropped is x else dropped, group)
        return tuple(y + theirs for y, theirs in zip(ys, base, strict=True)) if base else ys


class _Group:
    """Some of the Linears of a `LoraLinears`, with the values of one step.

    has_base: whether W x + b is part of the output; else the caller adds it.
    """

    def __init__(self, owner: LoraLinears, chosen: tuple[int, ...], values: Values, has_base: bool) -> None:
        self.linears = [owner.linears[index] for index in chosen]
        self.has_base = has_base
        self.scale = owner.scale
        self.parameters = owner.parameters
        self.names_a = tuple(owner.names_a[index] for index in chosen)
        self.names_b = [(owner.names_b[index],) for index in chosen]
        self.a_KI = values.rows(self.names_a)  # K = g r
        self.b_Or = [values.rows(name) for name in self.names_b]

    def outputs(self, x: torch.Tensor, dropped: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """y_i, and h_NK = x A^T of all A."""
        h_NK = dropped.flatten(0, -2) @ self.a_KI.T
        ys = []
        for linear, b_Or, h_Nr in zip(self.linears, self.b_Or, self._parts(h_NK), strict=True):
            if linear.is_skipped:
                # no memory; should it ever be read, the loss is NaN and training stops with an error message
                ys.append(x.new_full((), torch.nan).expand(*x.shape[:-1], linear.out_features))
            elif self.has_base:
                y = linear.output(x)
                y.flatten(0, -2).addmm_(h_Nr, b_Or.T, alpha=self.scale)
                ys.append(y)
            else:
                ys.append(torch.addmm(h_Nr.new_zeros(()), h_Nr, b_Or.T, alpha=self.scale).unflatten(0, x.shape[:-1]))
        return tuple(ys), h_NK

    def gradients(
        self, gs: Sequence[torch.Tensor], dropped: torch.Tensor, h_NK: torch.Tensor, needs_x: bool, needs_dropped: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """dL/dx by way of W, and dL/dx by way of A (added to the first where that is asked for alone)."""
        dropped_NI = dropped.flatten(0, -2)
        gh_NK = torch.empty_like(h_NK)
        grad_x = None
        for index, (linear, g, b_Or) in enumerate(zip(self.linears, gs, self.b_Or, strict=True)):
            g_NO = g.flatten(0, -2)
            gh_Nr, h_Nr = self._parts(gh_NK)[index], self._parts(h_NK)[index]
            torch.addmm(gh_Nr, g_NO, b_Or, beta=0, alpha=self.scale, out=gh_Nr)
            self.parameters.add_gradient(self.names_b[index], g_NO.T, h_Nr, self.scale)
            if needs_x and self.has_base:
                grad_x = linear.input_gradient(g, grad_x)
        self.parameters.add_gradient(self.names_a, gh_NK.T, dropped_NI, 1.0)
        if needs_dropped:
            return grad_x, (gh_NK @ self.a_KI).view(dropped.shape)
        if not needs_x:
            return None, None
        if grad_x is None:
            return (gh_NK @ self.a_KI).view(dropped.shape), None
        grad_x.flatten(0, -2).addmm_(gh_NK, self.a_KI)
        return grad_x, None

    def _parts(self, of_NK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return of_NK.chunk(len(self.linears), -1)


class _LoraNode(torch.autograd.Function):
    """y_i of a group, saving x and h."""

    @staticmethod
    def forward(ctx, trigger: torch.Tensor, x: torch.Tensor, dropped: torch.Tensor | None, group: _Group):
        # `trigger` is a parameter: it makes autograd record the node where x carries no gradient, and gets none here
        ctx.group = group
        used = x if dropped is None else dropped
        ys, h_NK = group.outputs(x, used)
        ctx.save_for_backward(used, h_NK)
        return ys

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gs: torch.Tensor):
        used, h_NK = ctx.saved_tensors
        _, needs_x, needs_dropped, _ = ctx.needs_input_grad
        grad_x, grad_dropped = ctx.group.gradients(gs, used, h_NK, needs_x, needs_dropped)
        return None, grad_x, grad_dropped, None
