"""What is trained of a model: a frozen record, validated on construction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..base.errors import UserError
from .checks import check_choice, check_least

MAX_RANK = 1024

ADAPTERS = ("lora", "rslora", "lokr", "loha")
"""Kinds of adapter; adapter/adapters.py gives the formulas and their sources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The adapter: its kind and size, and which Linears of the blocks get one."""

    rank: int = 32
    """Inner dimension of LoRA's B @ A, of LoHa's two products, or of LoKr's second factor."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; by alpha / sqrt(rank) in rsLoRA; not at all in LoKr's full form."""
    kind: str = "lora"
    """One of ADAPTERS."""
    dropout: float = 0.0
    """In training only. Probability that an input of LoRA's A is zeroed, drawn for each token; for LoKr and LoHa, that
    an output of the adapter is zeroed, drawn once for all tokens of the batch."""
    targets: str = "all"
    """all: the ten Linears of each block; attention: eight of them, without ffn.0 and ffn.2; anything else is a regular
    expression that must be found in a module's name, such as `blocks.3.self_attn.q`."""
    first_block: int = 0
    """Blocks before this one, counted from 0, get no adapter."""
    last_block: int = -1
    """Blocks after this one get no adapter; -1 = there are none after it."""
    lokr_factor: int = 16
    """Width of LoKr's first factor: 4 is a large adapter, 16 a small one; -1 = the width nearest to a square. From a
    rank of half the second factor's width on, that factor is trained as one full matrix (LyCORIS' full form)."""
    start: str = ""
    """Digest of the LoRA that training continues from (`continued` in lora/file.py); empty = a new LoRA."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UserError(f"rank is {self.rank}; choose 1 to {MAX_RANK}, for example 32.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"alpha is {self.alpha}; choose a positive number, for example the rank.")
        check_choice(self, kind=ADAPTERS)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; choose 0 or more, below 1, for example 0.05.")
        if self.lokr_factor != -1 and not 2 <= self.lokr_factor <= MAX_RANK:
            raise UserError(f"lokr_factor is {self.lokr_factor}; choose 2 to {MAX_RANK}, or -1.")
        self._check_targets()

    def _check_targets(self) -> None:
        if not self.targets.strip():
            raise UserError("targets is empty; choose all, attention, or a regular expression such as self_attn|ffn.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(f"targets is {self.targets!r}, which is no regular expression ({error}); choose all, "
                            "attention, or one such as self_attn|ffn.") from None
        check_least(self, first_block=0, last_block=-1)
        if self.last_block != -1 and self.last_block < self.first_block:
            raise UserError(f"The blocks are {self.first_block} to {self.last_block}; choose last_block at or after "
                            "first_block, or -1 for all that follow.")

    @property
    def file_alpha(self) -> float:
        """The alpha written to a file: readers scale by alpha / rank, so for rsLoRA it is alpha sqrt(rank)."""
        return self.alpha * math.sqrt(self.rank) if self.kind == "rslora" else self.alpha
