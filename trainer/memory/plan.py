"""What is kept of a forward pass for backward, and what is computed again: the plans, from the fastest to the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..settings.memory import AUTO, MemoryConfig

BLOCK, BRANCH = "block", "branch"
"""Of each block that is not whole the input is kept, or the inputs of its three branches."""

FEW_ROWS = 2048
"""Rows (samples x tokens) up to which a block that is computed again keeps what LoRA's A give: kernels for so few take
longer to start than to run."""

EVERYTHING = 1 << 16
"""Blocks, more than any model has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """None of it changes the result."""

    whole_blocks: int = 0
    """The last so many blocks keep all that backward needs; a number above that of all blocks stands for all."""
    segments: str = BLOCK
    """BLOCK or BRANCH. The last Linear of a block, or of each branch, is not computed again."""
    keeps_attention: bool = False
    """The results of attention over the video are kept too."""
    inputs_in_ram: bool = False
    """The kept inputs wait in pinned RAM, where the device is not the CPU. What is kept otherwise because it is small
    (keys and values of the text; what LoRA's A give for FEW_ROWS; positions of the next step) is computed again."""

    def told(self, blocks: int) -> str:
        """The plan in words.

        Args:
            blocks: of the model.
        """
        if self.whole_blocks >= blocks:
            return "nothing is computed twice"
        again = blocks - self.whole_blocks
        if self.segments == BRANCH and self.keeps_attention:
            told = f"{again} of {blocks} blocks are computed again, but for branches' inputs and attention's results"
        elif self.segments == BRANCH:
            told = f"{again} of {blocks} blocks are computed again, but for branches' inputs"
        elif self.keeps_attention:
            told = f"{again} of {blocks} blocks are computed again, but for attention's results"
        else:
            told = f"{again} of {blocks} blocks are computed again"
        return f"{told}, and inputs wait in RAM" if self.inputs_in_ram else told


def ladder(pins: MemoryConfig, blocks: int, has_ram: bool) -> Iterator[Plan]:
    """The plans that the settings leave open, the fastest first, each once.

    Args:
        has_ram: whether inputs can wait in RAM that is not the device's own memory.
    """
    known = set()
    for plan in _all(blocks, has_ram):
        plan = _pinned(plan, pins, blocks)
        if plan not in known:
            known.add(plan)
            yield plan


def _all(blocks: int, has_ram: bool) -> Iterator[Plan]:
    smaller = [Plan(segments=BRANCH, keeps_attention=True), Plan(keeps_attention=True), Plan()]
    yield from (replace(smaller[0], whole_blocks=number) for number in range(blocks, 0, -1))
    yield from smaller
    if has_ram:
        yield Plan(inputs_in_ram=True)


def _pinned(plan: Plan, pins: MemoryConfig, blocks: int) -> Plan:
    changes = {}
    if pins.whole_blocks >= 0:
        changes["whole_blocks"] = min(pins.whole_blocks, blocks)
    if pins.segments != AUTO:
        changes["segments"] = pins.segments
    if pins.keep_attention != AUTO:
        changes["keeps_attention"] = pins.keep_attention == "on"
    if pins.inputs_in_ram != AUTO:
        changes["inputs_in_ram"] = pins.inputs_in_ram == "on"
    plan = replace(plan, **changes)
    # where nothing is computed again, the rest means nothing
    return Plan(whole_blocks=blocks) if plan.whole_blocks == blocks else plan


def below(plan: Plan, pins: MemoryConfig, blocks: int, has_ram: bool) -> Plan | None:
    """The plan to go on with after there was too little memory for one; None if the settings leave no smaller one.

    It does without whole blocks at once, since nobody knows how much was missing.
    """
    plans = list(ladder(pins, blocks, has_ram))
    smaller = plans[plans.index(plan) + 1:]
    return next((each for each in smaller if not each.whole_blocks or each.whole_blocks == pins.whole_blocks), None)
