"""How large an adapter will be, before there is one: the shapes of its matrices, by its settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..settings.training import LoraConfig
from .adapter_kinds import chosen

LOHA_WORK = 18
"""Bytes for each number of the largest matrix that LoHa builds: its two factors, their product and the gradient in
fp32, and more for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSize:
    """What of an adapter counts for memory."""

    numbers: int
    """Trained numbers."""
    sides: int
    """Rows and columns of all its matrices."""
    values_per_token: float
    """At most so many values are kept for backward per token in one block, in the dtype of the activations."""
    is_recorded: bool = False
    """Whether autograd records what it does, and keeps more for that; LoRA's gradients are written out."""
    has_fp32_gradients: bool = False
    """Whether backward makes the gradients in fp32, as autograd does; LoRA's are in the dtype of the activations until
    all are there."""
    built_per_block: int = 0
    """Numbers of the matrices that LoHa builds for one block."""
    largest_built: int = 0
    """Numbers of the largest of them."""

    @property
    def working_bytes(self) -> int:
        """Bytes that are used for a while whatever the number of tokens."""
        return LOHA_WORK * self.largest_built


def adapter_size(config: LoraConfig, sizes: Mapping[str, tuple[int, int]]) -> AdapterSize:
    """The size of the adapter that `config` asks for.

    Args:
        sizes: (out_features, in_features) of the Linears that can get one, by name.

    Raises:
        UserError: `config` chooses none of them.
    """
    names = chosen(config, list(sizes))
    shapes = [shape for name in names for shape in matrices(config, *sizes[name])]
    built, inputs = Counter(), Counter()
    for name in names:
        block = ".".join(name.split(".")[:2])
        built[block] += math.prod(sizes[name])
        inputs[block] += sizes[name][1]
    is_lora, is_loha = config.kind in ("lora", "rslora"), config.kind == "loha"
    # with dropout each A keeps an input of its own, and a mask of one byte (half a 16-bit value) per value
    of_dropout = 1.5 * max(inputs.values()) if config.dropout else 0
    return AdapterSize(
        numbers=sum(map(math.prod, shapes)),
        sides=sum(map(sum, shapes)),
        values_per_token=8 * config.rank + of_dropout if is_lora else 0,
        is_recorded=not is_lora or config.dropout > 0,
        has_fp32_gradients=not is_lora,
        built_per_block=max(built.values()) if is_loha else 0,
        largest_built=max(math.prod(sizes[name]) for name in names) if is_loha else 0)


def matrices(config: LoraConfig, rows: int, columns: int) -> list[tuple[int, int]]:
    """The shapes of what is trained for a Linear of so many output and input features (model/adapters.py)."""
    rank = config.rank
    if config.kind == "loha":
        return 2 * [(rows, rank), (rank, columns)]
    if config.kind != "lokr":
        return [(rank, columns), (rows, rank)]
    (rows_1, rows_2), (columns_1, columns_2) = (_factors(size, config.lokr_factor) for size in (rows, columns))
    first = rows_1, columns_1
    if 2 * rank < max(rows_2, columns_2):
        return [first, (rows_2, rank), (rank, columns_2)]
    return [first, (rows_2, columns_2)]


def _factors(size: int, wanted: int) -> tuple[int, int]:
    """Two factors of a size, as PEFT takes them: the first is `wanted`, or the next smaller that divides it."""
    if wanted > 0 and size % wanted == 0:
        return wanted, size // wanted
    root = math.isqrt(size)
    first = max(each for each in range(1, min(root, wanted if wanted > 0 else root) + 1) if size % each == 0)
    return first, size // first
