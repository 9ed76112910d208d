"""How a block is computed while training: by ours or by ComfyUI's forward, with or without gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ...trainer.adapter.adapters import Adapter
from ...trainer.blocks.parking import Parking
from ...trainer.blocks.pieces import Pieces, Rotations
from ...trainer.blocks.recompute import Recomputed
from ...trainer.memory.plan import Plan
from . import frozen, frozen_norm
from .block import BRANCHES, LAST, WanBlock, is_known
from .modulations import Modulations
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
        linears: Mapping[str, frozen.FrozenLinear], norms: Mapping[str, frozen_norm.FrozenNorm],
        compute_dtype: torch.dtype, rotations: Rotations, modulations: Modulations, pieces: Pieces,
        streaming: Streaming, parking: Parking | None, plan: Plan | None
    ) -> None:
        self._block, self._name = stand_in.module, name
        self._adapter, self._compute_dtype = adapter, compute_dtype
        self._streaming = streaming
        self._is_whole = plan is None
        self._last = linears[f"{name}.{LAST}"]
        # a list, so that it can be fetched like a part of the network
        self._of_gradient = nn.ModuleList(
            linear.module for each, linear in linears.items() if each.startswith(f"{name}.") and linear.hands_on)
        self._theirs = self._as_comfyui(stand_in.original, plan)
        self._ours: Callable | None = None
        if is_known(self._block):
            self._ours = WanBlock(
                self._block, name, adapter, norms, compute_dtype, rotations, modulations, pieces, plan, self._first,
                self._again, parking)
        self.is_ours = True
        """Whether ours is used, where the block is one that ours can compute."""
        self.compared: Callable | None = None
        """Is called with ours, ComfyUI's and their arguments first; for a test."""

    def __call__(self, x: torch.Tensor, e: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """As the forward of the block; x carries a gradient, nothing else does."""
        ours = self._ours if WanBlock.takes(x, e) else None
        if self.compared is not None:
            self.compared(ours, self._theirs, x, e, *args, **kwargs)
        if ours is not None and self.is_ours:
            return ours(x, e, *args, **kwargs)
        if "transformer_options" in kwargs:  # the model overwrites the block's index in it; backward needs this one
            kwargs["transformer_options"] = dict(kwargs["transformer_options"])
        return self._theirs(x, e, *args, **kwargs)

    @contextmanager
    def _first(self, branch: int | None) -> Iterator[None]:
        with self._streaming.fetched(self._part(branch)), self._cast():
            yield

    @contextmanager
    def _again(self, branch: int | None) -> Iterator[None]:
        if self._is_whole:  # the rest of the weights has done its part
            with self._streaming.fetched(self._of_gradient):
                yield
            return
        with self._streaming.held(self._part(branch)), self._cast():
            yield

    def _part(self, branch: int | None) -> nn.Module:
        return self._block if branch is None else getattr(self._block, BRANCHES[branch])

    def _cast(self):
        return self._adapter.cast(self._name, self._compute_dtype, self._is_whole)

    def _as_comfyui(self, forward: Callable[..., torch.Tensor], plan: Plan | None) -> Callable[..., torch.Tensor]:
        def part(*args, **kwargs) -> torch.Tensor:
            with self._cast():
                return forward(*args, **kwargs)

        @contextmanager
        def again() -> Iterator[None]:
            with self._again(None), self._last.skipped():
                yield

        if plan is None:
            return part
        return Recomputed(part, lambda: self._first(None), again, self._adapter.is_within(self._name),
                          bool(self._adapter.config.dropout))
