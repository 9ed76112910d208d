"""A block as one node of autograd, which keeps of its forward pass what the plan says.

Gradient checkpointing (arXiv:1604.06174): what is not kept is computed again in backward, but for the last Linear of
what is kept apart, whose output nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from ..memory.plan import BRANCH, FEW_ROWS, Plan
from .kept import ATTENTION, HIDDEN, NOTHING, TEXT, Kept
from .parking import Parking
from .recompute import RandomStates
from .wan_branches import Inputs

Around = Callable[[int | None], AbstractContextManager]
"""Encloses a computation of a branch, given by its number, or of the whole block (None)."""


class Branch(Protocol):
    """As those of wan_branches.py."""

    def forward(self, x_BLD: torch.Tensor, inputs: Inputs, saves: bool, reads: bool, kept: Kept):
        """x plus what the branch adds, and what `backward` needs."""

    def backward(self, saved, grad_BLD: torch.Tensor, inputs: Inputs, needs_x: bool) -> torch.Tensor | None:
        """The gradient of x."""


class LeanBlock:
    """Computes a block.

    Args:
        branches: in the order in which they are computed.
        trains: of each branch, whether it has parameters of an adapter.
        plan: None where everything is kept.
        first, again: enclose the first and the second computation; the second with its backward, or the backward alone
            where everything is kept.
        draws: whether random numbers are drawn, which must be the same both times.
        parking: of all blocks, for a plan whose inputs wait in RAM; None on the CPU.
    """

    def __init__(
        self, branches: Sequence[Branch], trains: Sequence[bool], plan: Plan | None, first: Around, again: Around,
        draws: bool, parking: Parking | None
    ) -> None:
        self._branches = branches
        self._trains = trains
        self._is_whole = plan is None
        self._is_by_branch = plan is not None and plan.segments == BRANCH
        self._first, self._again = first, again
        self._keeps_attention = plan is not None and plan.keeps_attention
        self._saves_memory = plan is not None and plan.inputs_in_ram
        self._parking = parking if self._saves_memory else None
        self.draws = draws

    def _kept_of(self, num_rows: int) -> set[str]:
        are_kept = {
            ATTENTION: self._keeps_attention,
            TEXT: not self._saves_memory,
            HIDDEN: not self._saves_memory and num_rows <= FEW_ROWS,
        }
        return {kind for kind, is_kept in are_kept.items() if is_kept}

    def __call__(self, x_BLD: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """x after all branches; nothing but x carries a gradient."""
        if not (torch.is_grad_enabled() and (x_BLD.requires_grad or any(self._trains))):
            with torch.no_grad():
                return self.forward(x_BLD, inputs, keeps=False)[0]
        # it makes autograd record the node where x carries no gradient
        return _BlockNode.apply(torch.empty((), requires_grad=True), x_BLD, self, inputs)

    def forward(self, x_BLD: torch.Tensor, inputs: Inputs, keeps: bool = True) -> tuple[torch.Tensor, list]:
        """The result, and what is kept of the block or of each branch: its input, or what its gradient needs."""
        kept = [_Part(self, x_BLD)] if keeps and not (self._is_whole or self._is_by_branch) else []
        saves = keeps and self._is_whole
        with self._first(None):
            for branch in self._branches:
                if keeps and self._is_by_branch:
                    kept.append(_Part(self, x_BLD))
                memory = NOTHING if self._is_whole or not keeps else kept[-1].memory
                x_BLD, saved = branch.forward(x_BLD, inputs, saves, True, memory)
                if saves:
                    kept.append(saved)
        return x_BLD, kept

    def backward(self, kept: list, grad_BLD: torch.Tensor, inputs: Inputs, needs_x: bool) -> torch.Tensor | None:
        """The gradient of x, if it is asked for; parameters get theirs in any case."""
        if self._is_by_branch:
            return self._through(kept, grad_BLD, inputs, needs_x)
        with self._again(None):
            if self._is_whole:
                return self._through(kept, grad_BLD, inputs, needs_x)
            x_BLD, memory = kept.pop().restored()
            all_saved = []
            for branch in self._branches:
                x_BLD, saved = branch.forward(x_BLD, inputs, True, branch is not self._branches[-1], memory)
                all_saved.append(saved)
            return self._through(all_saved, grad_BLD, inputs, needs_x)

    def _through(self, kept: list, grad_BLD: torch.Tensor, inputs: Inputs, needs_x: bool) -> torch.Tensor | None:
        for number in reversed(range(len(self._branches))):
            if not (needs_x or any(self._trains[:number + 1])):
                break  # nothing before it is trained
            needs = needs_x or any(self._trains[:number])
            branch, saved = self._branches[number], kept.pop()
            with self._again(number) if self._is_by_branch else nullcontext():
                if self._is_by_branch:
                    x_BLD, memory = saved.restored()
                    _, saved = branch.forward(x_BLD, inputs, True, False, memory)
                grad_BLD = branch.backward(saved, grad_BLD, inputs, needs)
            del saved
        return grad_BLD if needs_x else None


class _Part:
    """The input of a part that is computed again, and what else is kept of it."""

    def __init__(self, block: LeanBlock, x_BLD: torch.Tensor) -> None:
        self._parking = block._parking
        self._x_BLD = x_BLD if self._parking is None else self._parking.put(x_BLD)
        self.memory = Kept(block._kept_of(x_BLD.shape[:2].numel()))

    def restored(self) -> tuple[torch.Tensor, Kept]:
        self.memory.begin_again()
        return self._x_BLD if self._parking is None else self._parking.take(self._x_BLD), self.memory


class _BlockNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, _trigger: torch.Tensor, x_BLD: torch.Tensor, block: LeanBlock, inputs: Inputs) -> torch.Tensor:
        ctx.block, ctx.inputs = block, inputs
        ctx.random = RandomStates(x_BLD) if block.draws else None
        y_BLD, ctx.kept = block.forward(x_BLD, inputs)
        return y_BLD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BLD: torch.Tensor):
        (kept, inputs), ctx.kept, ctx.inputs = (ctx.kept, ctx.inputs), None, None
        with nullcontext() if ctx.random is None else ctx.random.restored():
            grad_BLD = ctx.block.backward(kept, grad_BLD, inputs, ctx.needs_input_grad[1])
        return None, grad_BLD, None, None
