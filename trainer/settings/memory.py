"""What of the memory plan a user pins (memory/plan.py chooses the rest), and how a step is computed."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check_choice, check_least

AUTO = "auto"

SEGMENTS = (AUTO, "branch", "block")
"""What is computed again at once in backward: one of the three branches of a block, or the whole block."""

SWITCH = (AUTO, "on", "off")

EXACT = "exact"
PRODUCTS = (EXACT, "fp8", "int8")
"""exact: in the dtype of the model. The others are faster on cards that have them, and round more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is kept of the forward pass for backward, and how a step is computed. Only `products` changes what it does.

    Each part is chosen by what is free, unless it is pinned here.
    """

    whole_blocks: int = -1
    """So many of the last blocks keep all that they compute, and nothing of them is computed again; -1 = as many as
    fit."""
    segments: str = AUTO
    """One of SEGMENTS: how the other blocks are computed again. branch keeps three inputs a block, block one."""
    keep_attention: str = AUTO
    """One of SWITCH: the other blocks keep the result of their attention over the video, which is dear to compute."""
    inputs_in_ram: str = AUTO
    """One of SWITCH: inputs of blocks wait for backward in pinned RAM; not on a CPU."""
    keep_free: float = 0.0
    """GiB of the device that other programs get, beside what ComfyUI leaves free."""
    compile: str = AUTO
    """One of SWITCH: whether small functions of a block are compiled; auto: on a GPU where Triton works."""
    products: str = EXACT
    """One of PRODUCTS: how weights that are not trained are multiplied; a run with others is another run."""

    def __post_init__(self) -> None:
        check_choice(self, segments=SEGMENTS, keep_attention=SWITCH, inputs_in_ram=SWITCH, compile=SWITCH,
                     products=PRODUCTS)
        check_least(self, whole_blocks=-1, keep_free=0)
