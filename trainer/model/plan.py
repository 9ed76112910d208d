"""What is kept of a forward pass for backward; what is not kept is computed again."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK, BRANCH = "block", "branch"
"""Of each block that is not whole the input is kept, or the inputs of its three branches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """None of it changes the result."""

    whole_blocks: int = 0
    """The last so many blocks keep all that backward needs; a number above that of all blocks stands for all."""
    segments: str = BLOCK
    """BLOCK or BRANCH. The last Linear of a block, or of each branch, is not computed again."""
    keeps_attention: bool = False
    """The results of attention are kept too."""
    inputs_in_ram: bool = False
    """The kept inputs wait in pinned RAM, where the device is not the CPU."""


EVERYTHING = 1 << 16
"""Blocks, more than any model has."""
