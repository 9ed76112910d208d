"""All that stands in for layers of the network while training, put in and taken out as one injection of ComfyUI's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from comfy.patcher_extension import PatcherInjection
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...trainer.model.adapters import Adapter
from . import frozen

LAST = "ffn.2"
"""Name, within a block, of its last Linear: its output is scaled by the modulation and added to the residual stream,
and nothing else reads it."""


class StandIns:
    """For every layer whose input may carry a gradient: a frozen one, with the adapter where it has one.

    Injections of others that the MODEL carries are put in with ours, between a Linear and the stand-in for it, and all
    are taken out in reverse. ComfyUI takes injections out in the order in which it put them in, so that each would put
    back what the other has already taken away.

    Args:
        blocks: name of the network's list of blocks.
        others: the injections of a MODEL, by their names.
    """

    def __init__(
        self, network: nn.Module, blocks: str, others: Mapping[str, Sequence[PatcherInjection]]
    ) -> None:
        self._network = network
        self._blocks = blocks
        self._others = [injection for injections in others.values() for injection in injections]
        self._held: list[tuple[frozen.FrozenModule, Callable]] = []
        self.injection = PatcherInjection(self._inject, self._eject)

    @property
    def linears(self) -> list[frozen.FrozenLinear]:
        """The frozen Linears."""
        return [stand_in for stand_in, _ in self._held if isinstance(stand_in, frozen.FrozenLinear)]

    @property
    def displaced(self) -> dict[nn.Module, Callable | None]:
        """The forward of another pack that each module had, if any; while injected."""
        return {stand_in.module: stand_in.displaced for stand_in, _ in self._held}

    @property
    def are_in_place(self) -> bool:
        """Whether each still answers its module's calls; while injected."""
        return all(stand_in.module.__dict__.get("forward") is function for stand_in, function in self._held)

    def hold(
        self, adapter: Adapter, linears: Mapping[str, frozen.FrozenLinear], compute_dtype: torch.dtype,
        gradient_checkpointing: bool
    ) -> None:
        """Choose what stands in for what, by the adapter, from now on.

        Args:
            linears: those over which the adapter was made, by name.
            compute_dtype: of the activations.
        """
        self._held = held = []
        for name, module in self._network.named_modules():
            if not name.startswith((f"{self._blocks}.", "head.")):
                continue
            if name in linears:
                linears[name].ends_block = gradient_checkpointing and name.endswith(LAST)
                held.append((linears[name], adapter.forward_of(name, compute_dtype)))
            elif frozen.is_linear(module):
                linear = frozen.FrozenLinear(module)
                held.append((linear, linear))
            elif frozen.is_affine_norm(module):
                norm = frozen.FrozenNorm(module)
                held.append((norm, norm))
        if gradient_checkpointing:
            for number, block in enumerate(getattr(self._network, self._blocks)):
                stand_in = frozen.FrozenModule(block)
                last = linears[f"{self._blocks}.{number}.{LAST}"]
                held.append((stand_in, _checkpointed(stand_in, last, bool(adapter.config.dropout))))

    def _inject(self, patcher) -> None:
        linears = set(self.linears if self._others else ())
        for linear in linears:
            linear.begin_below()
        for injection in self._others:
            injection.inject(patcher)
        for stand_in, function in self._held:
            (stand_in.begin_above if stand_in in linears else stand_in.begin)(function)

    def _eject(self, patcher) -> None:
        linears = set(self.linears if self._others else ())
        for stand_in, _ in reversed(self._held):
            (stand_in.end_above if stand_in in linears else stand_in.end)()
        for injection in reversed(self._others):
            injection.eject(patcher)
        for linear in linears:
            linear.end()


def _checkpointed(block: frozen.FrozenModule, last: frozen.FrozenLinear, draws: bool):
    """The block's forward with gradient checkpointing; backward computes it again, but for its last layer.

    Args:
        last: that layer; nothing in backward reads its output.
        draws: whether the block has dropout, which must draw the same values both times.
    """

    def forward(*args, **kwargs):
        if "transformer_options" in kwargs:  # the model overwrites the block's index in it; backward needs this one
            kwargs["transformer_options"] = dict(kwargs["transformer_options"])
        return checkpoint(
            block.original, *args, use_reentrant=False, preserve_rng_state=draws,
            context_fn=lambda: (nullcontext(), last.skipped_in_recompute()), **kwargs,
        )

    return forward
