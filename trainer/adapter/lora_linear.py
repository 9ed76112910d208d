"""LoRA beside frozen Linears as one autograd node: no autocast, no copy of the output, no gradient of W.

For Linears i with the same input x, where s = alpha / rank (arXiv:2106.09685):

    y_i = W_i x + b_i + s B_i A_i x
    dL/dx = sum of (g_i W_i + s g_i B_i A_i),  dL/dB_i = s g_i^T (x A_i^T),  dL/dA_i = s (g_i B_i)^T x

The A_i lie one below the other, so x is multiplied by all of them at once, and so are the gradients; and the B_i of
Linears of the same width are multiplied as one batch. The gradients of A and B are not returned to autograd but written
where the optimizer reads them (block_parameters.py): one kernel each.

Shape legend: N rows (samples x tokens), I in_features, O out_features, r rank, g Linears, K = g r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from .block_parameters import BlockParameters, Values
from .linears import Frozen, FrozenLinear, Linears, Outputs, Recorded, Saved, outputs


@dataclass(slots=True)
class Switch:
    """Whether adapters act at all, and whether their dropout does."""

    is_on: bool = True
    drops: bool = False


class LoraLinears:
    """LoRA over Linears that have the same input; a `Linears`, and callable where autograd is to record it.

    Args:
        names: of the Linears, as in the parameters' names `<name>.lora_A.weight`.
        parameters: of the block; the A of these Linears follow each other, and so do the B.
        scale: s.
        dropout: probability that a value of A's input is zeroed, drawn for each Linear by itself.
    """

    def __init__(
        self, names: Sequence[str], linears: Sequence[FrozenLinear], parameters: BlockParameters, scale: float,
        dropout: float, switch: Switch
    ) -> None:
        self._linears = tuple(linears)
        self._parameters = parameters
        self._names_a = tuple(f"{name}.lora_A.weight" for name in names)
        self._names_b = tuple(f"{name}.lora_B.weight" for name in names)
        self._place_a, self._place_b = parameters.place(self._names_a), parameters.place(self._names_b)
        self._scale = scale
        self._dropout = dropout
        self._switch = switch
        self._frozen = Frozen(self._linears)
        self._recorded = Recorded(self._each)

    @property
    def are_adjacent(self) -> bool:
        """Whether the A, and the B of the same height, lie one below the other without a gap, as they must."""
        return (self._parameters.are_adjacent(self._names_a) and self._parameters.are_adjacent(self._names_b)
                and len({linear.out_features for linear in self._linears}) == 1)

    @property
    def can_wait(self) -> bool:
        """As `Linears`."""
        return self._frozen.can_wait and not self._is_by_itself()

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """y_i of each Linear, (..., O_i), for x (..., I), recorded by autograd."""
        if not self._switch.is_on:
            return tuple(linear(x) for linear in self._linears)
        if self._is_by_itself():
            return self._each(x)
        if not torch.is_grad_enabled():
            ys_NO, _ = self.forward(x.flatten(0, -2), saves=False)
            return tuple(y_NO.unflatten(0, x.shape[:-1]) for y_NO in ys_NO)
        return _LoraNode.apply(self._parameters.trigger, x, self)

    def forward(self, x_NI, saves, reads=True, kept=None):
        """As `Linears`."""
        if not self._switch.is_on:
            return _delegated(self._frozen, x_NI, saves, reads)
        if self._is_by_itself():
            return _delegated(self._recorded, x_NI, saves, reads)
        values = self._parameters.values(x_NI.dtype)
        columns_IK = values.columns(self._place_a)
        h_NK = x_NI @ columns_IK if kept is None else kept(lambda: x_NI @ columns_IK)
        ys_NO = self._outputs(x_NI, h_NK, values) if reads else (None,) * len(self._linears)
        return ys_NO, [x_NI, h_NK, values] if saves else None

    def backward(self, saved, grads_NO, needs_x):
        """As `Linears`."""
        if isinstance(saved, _Delegated):
            return saved.to.backward(saved.saved, grads_NO, needs_x)
        x_NI, h_NK, values = saved
        saved.clear()
        if len(self._linears) == 1:
            gh_NK = grads_NO[0] @ values.rows(self._place_b)
            self._parameters.add_gradient(self._names_b, grads_NO[0].t(), h_NK, self._scale)
        else:
            grads_NO = grads_NO if isinstance(grads_NO, torch.Tensor) else torch.stack(tuple(grads_NO))
            gh_NK = torch.empty_like(h_NK)
            torch.bmm(grads_NO, values.batch(self._place_b, len(self._linears)), out=self._by_linear(gh_NK))
            self._parameters.add_gradient(self._names_b, grads_NO.mT, self._by_linear(h_NK), self._scale)
        self._parameters.add_gradient(self._names_a, gh_NK.t(), x_NI, self._scale)
        del x_NI  # its memory, before there is a gradient of the same size
        grad_NI = self._frozen.backward((), grads_NO, needs_x)
        return grad_NI.addmm_(gh_NK, values.rows(self._place_a), alpha=self._scale) if needs_x else None

    def _outputs(self, x_NI: torch.Tensor, h_NK: torch.Tensor, values: Values) -> Outputs:
        ys_NO = outputs(self._linears, x_NI)
        if len(self._linears) > 1:
            b_gOr = values.batch(self._place_b, len(self._linears))
            return ys_NO.baddbmm_(self._by_linear(h_NK), b_gOr.mT, alpha=self._scale)
        if not self._linears[0].is_skipped:
            ys_NO[0].addmm_(h_NK, values.columns(self._place_b), alpha=self._scale)
        return ys_NO

    def _by_linear(self, of_NK: torch.Tensor) -> torch.Tensor:
        """As (g, N, r), in the same memory."""
        return of_NK.view(len(of_NK), len(self._linears), -1).transpose(0, 1)

    def _is_by_itself(self) -> bool:
        """Whether each Linear needs a computation of its own: with dropout, or around another pack's forward."""
        return bool(self._switch.drops and self._dropout) or not all(linear.is_plain for linear in self._linears)

    def _each(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """W x by autograd, plus s B A x of an input that may have been dropped from."""
        values = self._parameters.values(x.dtype)
        ys = []
        for linear, name_a, name_b in zip(self._linears, self._names_a, self._names_b, strict=True):
            dropped = functional.dropout(x, self._dropout) if self._switch.drops and self._dropout else x
            delta = _DeltaNode.apply(
                self._parameters.trigger, dropped, values.rows(self._parameters.place((name_a,))),
                values.rows(self._parameters.place((name_b,))), self._scale, self._parameters, (name_a,), (name_b,))
            ys.append(linear(x) + delta)
        return tuple(ys)


class _Delegated(NamedTuple):
    to: Linears
    saved: Saved


def _delegated(to: Linears, x_NI: torch.Tensor, saves: bool, reads: bool):
    ys_NO, saved = to.forward(x_NI, saves, reads)
    return ys_NO, _Delegated(to, saved)


class _LoraNode(torch.autograd.Function):
    """A `LoraLinears` as a node of autograd."""

    @staticmethod
    def forward(ctx, _trigger: torch.Tensor, x: torch.Tensor, lora: LoraLinears):
        # the trigger is a parameter: it makes autograd record the node where x carries no gradient, and gets none here
        ys_NO, (x_NI, h_NK, values) = lora.forward(x.flatten(0, -2), saves=True)
        ctx.lora, ctx.values, ctx.shape = lora, values, x.shape
        ctx.save_for_backward(x_NI, h_NK)
        return tuple(y_NO.view(*x.shape[:-1], -1) for y_NO in ys_NO)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: torch.Tensor):
        grads_NO = [grad.flatten(0, -2) for grad in grads]
        grad_NI = ctx.lora.backward([*ctx.saved_tensors, ctx.values], grads_NO, ctx.needs_input_grad[1])
        return None, None if grad_NI is None else grad_NI.view(ctx.shape), None


class _DeltaNode(torch.autograd.Function):
    """s B A x of one Linear."""

    @staticmethod
    def forward(ctx, _trigger, x, a_rI, b_Or, scale: float, parameters: BlockParameters, name_a, name_b):
        x_NI = x.flatten(0, -2)
        h_Nr = functional.linear(x_NI, a_rI)
        ctx.save_for_backward(x_NI, h_Nr)
        ctx.a_rI, ctx.b_Or, ctx.rest, ctx.shape = a_rI, b_Or, (scale, parameters, name_a, name_b), x.shape
        return torch.addmm(h_Nr.new_zeros(()), h_Nr, b_Or.t(), alpha=scale).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        x_NI, h_Nr = ctx.saved_tensors
        scale, parameters, name_a, name_b = ctx.rest
        grad_NO = grad.flatten(0, -2)
        gh_Nr = grad_NO @ ctx.b_Or * scale
        parameters.add_gradient(name_b, grad_NO.t(), h_Nr, scale)
        parameters.add_gradient(name_a, gh_Nr.t(), x_NI, 1.0)
        return None, (gh_Nr @ ctx.a_rI).view(ctx.shape), *(None,) * 6
