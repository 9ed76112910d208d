"""How a block is computed while training: by ours or by ComfyUI's forward, with or without gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from ...trainer.model.adapters import Adapter
from ...trainer.model.pieces import Rotations
from ...trainer.model.plan import BRANCH, Plan
from ...trainer.model.recompute import Recomputed
from . import frozen
from .block import BRANCHES, LAST, LeanBlock
from .streaming import Streaming


class ComputedBlock:
    """Stands in for a block's forward.

    Args:
        stand_in: of the block.
        name: of the block in the network, such as `blocks.3`.
        linears, norms: what stands in for its Linears and affine norms, by their names in the network.
        plan: None where the block keeps everything.
    """

    def __init__(
        self, stand_in: frozen.FrozenModule, name: str, adapter: Adapter,
        linears: Mapping[str, frozen.FrozenLinear], norms: Mapping[str, frozen.FrozenNorm], compute_dtype: torch.dtype,
        rotations: Rotations, streaming: Streaming, plan: Plan | None
    ) -> None:
        self._block = stand_in.module
        self._adapter, self._name, self._compute_dtype = adapter, name, compute_dtype
        self._streaming = streaming
        self._last = {branch: linears[f"{name}.{last}"] for branch, last in LAST.items()}
        self._draws = bool(adapter.config.dropout)
        self._theirs: Callable = self._cast(stand_in.original)
        self._lean: Callable | None = None
        self.is_lean = True
        """Whether ours is used, where the block is one that ours can compute."""
        self.compared: Callable | None = None
        """Is called with ours, ComfyUI's and their arguments first; for a test."""
        is_by_branch = plan is not None and plan.segments == BRANCH
        if LeanBlock.takes(stand_in.module):
            own = {key.removeprefix(f"{name}."): norm for key, norm in norms.items() if key.startswith(f"{name}.")}
            self._lean = LeanBlock(
                stand_in.module, name, adapter, own, compute_dtype, rotations,
                self._recomputed_branch if is_by_branch else lambda _branch, part: part)
        if plan is not None:
            self._theirs = self._recomputed(stand_in.module, name, BRANCHES[-1], stand_in.original)
        if self._lean is not None and not is_by_branch:
            self._lean = (self._cast(self._lean) if plan is None else
                          self._recomputed(stand_in.module, name, BRANCHES[-1], self._lean))

    def __call__(self, x: torch.Tensor, e: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """As the forward of the block; x carries a gradient, nothing else does."""
        lean = self._lean if LeanBlock.takes_modulation(e) else None
        if self.compared is not None:
            self.compared(lean, self._theirs, x, e, *args, **kwargs)
        if lean is not None and self.is_lean:
            return lean(x, e, *args, **kwargs)
        if "transformer_options" in kwargs:  # the model overwrites the block's index in it; backward needs this one
            kwargs["transformer_options"] = dict(kwargs["transformer_options"])
        return self._theirs(x, e, *args, **kwargs)

    def _cast(self, part: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def cast(*args, **kwargs) -> torch.Tensor:
            with self._adapter.cast(self._name, self._compute_dtype):
                return part(*args, **kwargs)

        return cast

    def _recomputed_branch(self, branch: str, part: Callable[..., torch.Tensor]) -> Recomputed:
        return self._recomputed(getattr(self._block, branch), f"{self._name}.{branch}", branch, part)

    def _recomputed(
        self, module: nn.Module, name: str, last: str, part: Callable[..., torch.Tensor]
    ) -> Recomputed:
        """With gradient checkpointing.

        Args:
            module: which the part computes, and its name in the network.
            last: the branch with which it ends.
        """

        @contextmanager
        def again() -> Iterator[None]:
            with self._streaming.held(module), self._last[last].skipped():
                yield

        return Recomputed(self._cast(part), partial(self._streaming.fetched, module), again,
                          self._adapter.is_within(name), self._draws)
