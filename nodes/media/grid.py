"""Many short clips in one labelled grid, and their strips under each other as one picture.

Uses numpy, not ComfyUI. Shape legend: F frames, H height, W width, 3 colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...trainer.media import strips
from ...trainer.media.pictures import MIN_READABLE_WIDTH, centred, fit, label_bar

MAX_COLUMNS = 6
"""Longer rows are broken into rows of about the same length."""

MAX_HEIGHT, MAX_WIDTH = 2160, 3840
"""Of the whole grid in pixels; what any player of today decodes."""

MAX_STRIP_WIDTH = 320
"""Of one frame in a strip, in pixels."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Panel:
    """One clip and what is written above it."""

    label: str
    clip_FHW3: np.ndarray
    """uint8, of `panel_size`."""
    line: str = ""
    """Written below it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together, under a heading of their own unless it is empty."""

    heading: str
    rows: Sequence[Sequence[Panel]]


def wrapped(row: Sequence[T]) -> list[Sequence[T]]:
    """A row in parts of at most MAX_COLUMNS, as equal as can be."""
    num_rows = math.ceil(len(row) / MAX_COLUMNS)
    columns = math.ceil(len(row) / max(1, num_rows))
    return [row[start : start + columns] for start in range(0, len(row), columns)]


def panel_size(num_rows: int, num_columns: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of each clip in a grid: even, large enough for a label, small enough for a player."""
    factor = math.ceil(MIN_READABLE_WIDTH / width)
    scale = min(factor, MAX_WIDTH / (num_columns * width), MAX_HEIGHT / (num_rows * height))
    tall, wide = (max(2, 2 * int(side * scale / 2)) for side in (height, width))
    return tall, wide


def scaled(clip_FHW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A clip of uint8 at the size of a panel, (height, width), uncropped on black."""
    panel_FHW3 = np.empty((len(clip_FHW3), *size, 3), np.uint8)
    for index, frame_HW3 in enumerate(clip_FHW3):
        panel_FHW3[index] = centred(fit(frame_HW3, *size), *size)
    return panel_FHW3


def frames(groups: Sequence[Group]) -> Iterator[np.ndarray]:
    """The grid's frames (H, W, 3) uint8, one at a time; shorter rows are filled up with black."""
    rows = [row for group in groups for row in group.rows]
    columns = max(len(row) for row in rows)
    num_frames, height, width = rows[0][0].clip_FHW3.shape[:3]
    panels = [panel for row in rows for panel in row]
    bars = {text: label_bar(text, width) for panel in panels for text in (panel.label, panel.line)}
    has_lines = any(panel.line for panel in panels)
    bar_height = len(bars[panels[0].label])
    empty_HW3 = np.zeros((bar_height * (1 + has_lines) + height, width, 3), np.uint8)
    headings = {group.heading: label_bar(group.heading, columns * width) for group in groups if group.heading}
    for index in range(num_frames):
        parts = []
        for group in groups:
            parts += [headings[group.heading]] if group.heading else []
            for row in group.rows:
                cells = [np.concatenate([bars[panel.label], panel.clip_FHW3[index], *[bars[panel.line]] * has_lines])
                         for panel in row]
                parts.append(np.concatenate(cells + [empty_HW3] * (columns - len(row)), axis=1))
        frame_HW3 = np.concatenate(parts)
        yield frame_HW3[: len(frame_HW3) // 2 * 2]


def strip(groups: Sequence[Group]) -> np.ndarray:
    """One picture (H, W, 3) uint8: the strip of each clip under its label, each clip once."""
    rows = []
    for group in groups:
        # the base model's clip stands in each row of the grid
        for panel in {id(panel): panel for row in group.rows for panel in row}.values():
            label = ", ".join(filter(None, (group.heading, panel.label, panel.line)))
            strip_HW3 = strips.strip(panel.clip_FHW3, MAX_STRIP_WIDTH)
            rows += [label_bar(label, strip_HW3.shape[1]), strip_HW3]
    return np.concatenate(rows)
