"""Choosing a plan by the memory that is free, and saying what would fit where none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..adapter.adapter_size import AdapterSize, adapter_size
from ..base.errors import UserError
from ..settings.memory import MemoryConfig
from ..settings.training import LoraConfig, OptimizerConfig
from .footprint import parts, stream_buffers
from .plan import Plan, ladder
from .sizes import ModelSize, Parts, Work

GIB = 2**30

PASSES = 3
"""Of the computation of what depends on its own result; it comes near from above."""

SIDE_STEP = 16
"""Pixels by which a smaller resolution is tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What a device offers, once all else that can leave it has left."""

    free: int
    """Bytes for the weights and all else."""
    ram: int
    """Bytes of RAM for inputs of blocks that wait; 0 where the device has no other memory."""
    offloads: bool
    """Whether weights can stay in RAM."""
    streams: int = 0
    """By which these are fetched in turn, each into a buffer of its own; 0 where each weight gets memory of its own."""
    fetches_blocks: bool = False
    """Whether a stream fetches all weights of a block at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What is to be trained on what."""

    model: ModelSize
    linears: Mapping[str, tuple[int, int]]
    """(out_features, in_features) of those that can get an adapter, by name."""
    lora: LoraConfig
    optimizer: OptimizerConfig
    work: Work
    pins: MemoryConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A plan, and what it takes of what there is."""

    plan: Plan
    parts: Parts
    free: int
    """Bytes, of which `parts.total` is used."""
    blocks: int
    """Of the model."""

    def told(self) -> str:
        """A sentence for the log and the page."""
        weights, adapter, optimizer, activations, previews, used, free, offloaded = (
            f"{number / GIB:.2f}" for number in (
                self.parts.weights, self.parts.adapter, self.parts.optimizer, self.parts.activations,
                self.parts.previews, self.parts.total, self.free, self.parts.offloaded))
        rest = f" {offloaded} GiB of the weights stay in RAM." if self.parts.offloaded else ""
        copies = f"{self.parts.copies / GIB:.2f}"
        rest += f" Copies of weights in 8 bits take {copies} GiB of it." if self.parts.copies else ""
        plan = self.plan.told(self.blocks)
        return (f"Memory: {used} of {free} GiB (weights {weights}, adapter {adapter}, optimizer {optimizer}, "
                f"activations {activations}, previews {previews}); {plan}.{rest}")


def choose(needs: Needs, space: Space) -> Choice:
    """The fastest plan that fits.

    Where none does with all weights on the device, it is the smallest one, and as many weights stay in RAM as do not
    fit.

    Raises:
        UserError: not even that fits; the sentence names the smallest change that does.
    """
    choice = fitting(needs, space)
    if choice is None:
        raise UserError(_refusal(needs, space))
    return choice


def fitting(needs: Needs, space: Space) -> Choice | None:
    """What `choose` gives, or None where nothing fits."""
    model, adapter = needs.model, adapter_size(needs.lora, needs.linears)
    free = space.free - int(needs.pins.keep_free * GIB)
    smallest = None
    for plan in ladder(needs.pins, model.blocks, space.ram > 0):
        found = parts(model, adapter, needs.optimizer, needs.work, plan)
        if found.ram > space.ram:
            continue
        if found.total <= free:
            return Choice(plan=plan, parts=found, free=free, blocks=model.blocks)
        smallest = plan
    return None if smallest is None or not space.offloads else _offloaded(needs, space, adapter, smallest, free)


def _offloaded(needs: Needs, space: Space, adapter: AdapterSize, plan: Plan, free: int) -> Choice | None:
    """A plan with as many weights in RAM as do not fit in `free` bytes; None where the rest does not either."""
    model = replace(needs.model, are_cast=needs.model.are_cast or not space.streams,
                    are_lent=space.streams > 0 and not space.fetches_blocks)
    found = parts(model, adapter, needs.optimizer, needs.work, plan)
    missing, buffers = found.total - free, space.streams * model.stored
    for _ in range(PASSES):  # the smaller they are, the fewer weights stay away, and the smaller they can be
        buffers = stream_buffers(model, space.streams, missing + buffers, space.fetches_blocks)
    missing, found = missing + buffers, replace(found, activations=found.activations + buffers)
    most = model.weights + model.copies
    if missing > most:  # previews are tried all the same, and skipped where they fail
        missing, found = missing - found.previews, replace(found, previews=0)
    if missing > most:
        return None
    share = max(0.0, missing / most)  # what is not there has no copy either
    offloaded = math.ceil(share * model.weights)
    found = replace(found, weights=model.weights - offloaded, offloaded=offloaded,
                    copies=model.copies - math.ceil(share * model.copies))
    return Choice(plan=plan, parts=found, free=free, blocks=model.blocks)


def _refusal(needs: Needs, space: Space) -> str:
    pins = replace(needs.pins, whole_blocks=-1, segments="auto", keep_attention="auto", inputs_in_ram="auto")
    offered = [(2.0, "switch gradient_checkpointing on and set Memory Settings to auto", replace(needs, pins=pins))]
    helpful = [(share, advice) for share, advice, changed in [*offered, *_smaller(needs, space)]
               if fitting(changed, space) is not None]
    advice = max(helpful)[1] if helpful else (
        "no single change is enough, so take a smaller model or weights in fp8, and a lower resolution")
    model, adapter = needs.model, adapter_size(needs.lora, needs.linears)
    found = [parts(model, adapter, needs.optimizer, needs.work, plan)
             for plan in ladder(needs.pins, model.blocks, space.ram > 0)]
    smallest = min((each.total for each in found if each.ram <= space.ram), default=found[-1].total)
    fetched = space.streams * model.stored if space.fetches_blocks else model.streamed
    least = smallest - (model.weights + model.copies - fetched if space.offloads else 0)
    needed, there = f"{least / GIB:.1f}", f"{space.free / GIB - needs.pins.keep_free:.1f}"
    return f"Training needs at least {needed} GiB of memory here, {there} GiB are there; {advice}."


def _smaller(needs: Needs, space: Space) -> Iterator[tuple[float, str, Needs]]:
    """Of each setting the largest value below the present one that fits, with the share of the tokens or the rank that
    is left; a smaller batch counts as no loss, since `accumulation` makes up for it."""
    work = needs.work

    def fits(changed: Needs) -> bool:
        return fitting(changed, space) is not None

    def largest(values: Iterator[int], change: Callable[[int], Needs]) -> tuple[int, Needs] | None:
        return next(((value, changed) for value in values if fits(changed := change(value))), None)

    def with_work(**changes: int) -> Needs:
        return replace(needs, work=replace(work, **changes))

    def of_side(side: int) -> Needs:
        return with_work(side=side, tokens=max(1, -(-work.tokens * side**2 // work.side**2)))

    def of_frames(frames: int) -> Needs:
        before, after = ((number - 1) // work.stride + 1 for number in (work.frames, frames))
        return with_work(frames=frames, tokens=max(1, work.tokens * after // before))

    def of_rank(rank: int) -> Needs:
        return replace(needs, lora=replace(needs.lora, rank=rank))

    tried = (
        ("batch_size", work.batch_size, range(work.batch_size - 1, 0, -1), lambda size: with_work(batch_size=size)),
        ("resolution", work.side, range(work.side // SIDE_STEP * SIDE_STEP - SIDE_STEP, 0, -SIDE_STEP), of_side),
        ("frame_buckets", work.frames, range(work.frames - work.stride, 0, -work.stride), of_frames),
        ("rank", needs.lora.rank, (needs.lora.rank >> by for by in range(1, needs.lora.rank.bit_length())), of_rank))
    for name, present, values, change in tried:
        if found := largest(iter(values), change):
            value, changed = found
            share = 1.0 if name == "batch_size" else changed.work.tokens / work.tokens * (
                changed.lora.rank / needs.lora.rank)
            yield share, f"set {name} to {value} (now {present})", changed
