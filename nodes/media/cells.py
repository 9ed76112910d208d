"""Which clips Compare Checkpoints samples, and where each stands in the grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...trainer.base.errors import UserError
from ...trainer.settings.data import SEPARATORS
from . import grid
from .measured import told

MAX_CELLS = 60
"""Clips in one grid; nobody can compare more by eye."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One clip of the grid."""

    prompt: int
    """Counted from 0."""
    step: int | None
    """Of the checkpoint; None is the base model without a LoRA."""
    strength: float


Rows = Sequence[Sequence[Sequence[Cell]]]
"""rows[prompt][strength] is one row of cells: the base model, then each checkpoint."""


def read_strengths(text: str) -> tuple[float, ...]:
    """"0.7, 1.0" as numbers, each once.

    Raises:
        UserError: something else is in it, or nothing.
    """
    parts = [part.strip() for part in SEPARATORS.split(text) if part.strip()]
    try:
        found = tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(strength) and abs(strength) <= 20 for strength in found):
        raise UserError(f"strengths is {text!r}; give numbers from -20 to 20, such as 0.7, 1.0.")
    return found


def plan(num_prompts: int, steps: Sequence[int], strengths: Sequence[float], include_base: bool) -> Rows:
    """The grid's cells. The base model's cell is the same in each row of a prompt, so that it is sampled once.

    Raises:
        UserError: more than MAX_CELLS clips.
    """
    base = [None] if include_base else []
    rows = [[[Cell(prompt, step, 1.0 if step is None else strength) for step in (*base, *steps)]
             for strength in strengths] for prompt in range(num_prompts)]
    number = len(different(rows))
    if number > MAX_CELLS:
        raise UserError(f"That would be {number} clips ({num_prompts} prompts, {len(steps)} checkpoints, "
                        f"{len(strengths)} strengths), and {MAX_CELLS} is the most; choose fewer checkpoints, such as "
                        "last 4, or fewer strengths.")
    return rows


def different(rows: Rows) -> list[Cell]:
    """Each cell once, in the order of the grid."""
    return list(dict.fromkeys(cell for prompt in rows for row in prompt for cell in row))


def lines(rows: Rows) -> list[Sequence[Cell]]:
    """The rows as they stand in the grid, long ones wrapped."""
    return [line for prompt in rows for row in prompt for line in grid.wrapped(row)]


def panel_size(rows: Rows, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels of each clip in the grid, for clips that were sampled at height x width."""
    return grid.panel_size(len(lines(rows)), max(map(len, lines(rows))), height, width)


def measured(motions: Mapping[Cell, float | None], likenesses: Mapping[Cell, float | None]) -> dict[Cell, str]:
    """What is said of each clip, beside that of the base model for the same prompt."""
    def of_base(values: Mapping[Cell, float | None], cell: Cell) -> float | None:
        return None if cell.step is None else values.get(Cell(cell.prompt, None, 1.0))

    return {cell: told(motion, of_base(motions, cell), likenesses.get(cell), of_base(likenesses, cell))
            for cell, motion in motions.items()}


def groups(rows: Rows, panels: Mapping[Cell, grid.Panel]) -> list[grid.Group]:
    """The grid with its clips, under a heading for each prompt where there are several."""
    return [
        grid.Group(f"prompt {number}" if len(rows) > 1 else "",
                   [[panels[cell] for cell in line] for line in lines([prompt])])
        for number, prompt in enumerate(rows, 1)
    ]
