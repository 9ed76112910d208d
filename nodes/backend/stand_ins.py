"""All that stands in for layers of the network while training, put in and taken out as one injection of ComfyUI's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from comfy.patcher_extension import PatcherInjection
from torch import nn

from ...trainer.adapter.adapters import Adapter
from ...trainer.blocks.parking import Parking
from ...trainer.blocks.pieces import Pieces, Rotations
from ...trainer.memory.plan import Plan
from . import frozen, frozen_norm, self_test
from .block import OF_TEXT
from .computed import ComputedBlock
from .modulations import Modulations
from .streaming import Streaming


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
        self._computed: list[ComputedBlock] = []
        self._is_ours = True  # also for what is held after a change of plan
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

    @contextmanager
    def as_comfyui(self) -> Iterator[None]:
        """Inside the context blocks are computed by ComfyUI's own forward."""
        self._set_ours(False)
        try:
            yield
        finally:
            self._set_ours(True)

    def ours_differs(self, run: Callable[[], object]) -> bool:
        """Whether our forward of a block and ComfyUI's own differ by more than rounding; then ComfyUI's is used.

        Args:
            run: calls the network.
        """
        first = self._computed[0]
        found = []

        def compare(*arguments, **options) -> None:
            found.append(self_test.difference(*arguments, **options))
            raise self_test.Checked

        first.compared = compare
        try:
            with suppress(self_test.Checked):
                run()
        finally:
            first.compared = None
        self._set_ours(not found or found[0] <= self_test.ERROR)
        return not first.is_ours

    def _set_ours(self, is_ours: bool) -> None:
        self._is_ours = is_ours
        for block in self._computed:
            block.is_ours = is_ours

    def hold(
        self, adapter: Adapter, linears: Mapping[str, frozen.FrozenLinear], compute_dtype: torch.dtype, plan: Plan,
        pieces: Pieces, device: torch.device, is_dynamic: bool
    ) -> None:
        """Choose what stands in for what, by the adapter and the plan, from now on.

        Args:
            linears: those over which the adapter was made, by name.
            compute_dtype: of the activations.
            pieces: with which blocks are computed.
            is_dynamic: whether ComfyUI keeps the weights in dynamic VRAM.
        """
        self._held = held = []
        norms = {}
        for name, module in self._network.named_modules():
            if not name.startswith((f"{self._blocks}.", "head.")):
                continue
            if name in linears:
                linears[name].hands_on = not name.endswith(OF_TEXT)
                held.append((linears[name], adapter.forward_of(name, compute_dtype)))
            elif frozen.is_linear(module):
                linear = frozen.FrozenLinear(module)
                linear.hands_on = not name.endswith(OF_TEXT)
                held.append((linear, linear))
            elif frozen_norm.is_affine_norm(module):
                norms[name] = frozen_norm.FrozenNorm(module)
                held.append((norms[name], norms[name]))
        self._computed = []
        rotations, streaming = Rotations(), Streaming(self.linears, device, is_dynamic)
        parking = Parking(device) if plan.inputs_in_ram and device.type == "cuda" else None
        blocks = getattr(self._network, self._blocks)
        modulations = Modulations(blocks)
        for number, block in enumerate(blocks):
            stand_in = frozen.FrozenModule(block)
            computed = ComputedBlock(
                stand_in, f"{self._blocks}.{number}", adapter, linears, norms, compute_dtype, rotations,
                modulations, pieces, streaming, parking, plan if number < len(blocks) - plan.whole_blocks else None)
            self._computed.append(computed)
            held.append((stand_in, computed))
        self._set_ours(self._is_ours)

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
