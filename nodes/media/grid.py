"""Many short clips in one labelled grid, and their frames beside each other as a picture.

Knows numpy and Pillow, not ComfyUI. Shape legend: F frames, H height, W width, 3 colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .side_by_side import MIN_READABLE_WIDTH, fit, label_strip

MAX_COLUMNS = 6
"""Longer rows are broken into rows of about the same length."""

MAX_HEIGHT, MAX_WIDTH = 2160, 3840
"""Of the whole grid; what any player of today decodes."""

MAX_STRIP = 6
"""Frames of a clip in the picture."""

MAX_STRIP_WIDTH = 320
"""Of one frame in the picture."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Panel:
    """One clip and what is written above it."""

    label: str
    clip_FHW3: np.ndarray
    """uint8, of `panel_size`."""


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


def shrunk(pixels_FHW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A clip of uint8 at the size of a panel."""
    whole = np.zeros((len(pixels_FHW3), *size, 3), np.uint8)
    for frame_HW3, room_HW3 in zip(pixels_FHW3, whole, strict=True):
        picture_HW3 = fit(frame_HW3, *size)
        y, x = ((room - taken) // 2 for room, taken in zip(size, picture_HW3.shape[:2], strict=True))
        room_HW3[y : y + picture_HW3.shape[0], x : x + picture_HW3.shape[1]] = picture_HW3
    return whole


def frames(groups: Sequence[Group]) -> Iterator[np.ndarray]:
    """The grid's frames (H, W, 3) uint8, one at a time; rows that are shorter end in black."""
    rows = [row for group in groups for row in group.rows]
    columns = max(len(row) for row in rows)
    first = rows[0][0].clip_FHW3
    num_frames, height, width = first.shape[:3]
    strips = {label: label_strip(label, width) for label in {panel.label for row in rows for panel in row}}
    empty_HW3 = np.zeros((len(next(iter(strips.values()))) + height, width, 3), np.uint8)
    headings = {group.heading: label_strip(group.heading, columns * width) for group in groups if group.heading}
    for index in range(num_frames):
        parts = []
        for group in groups:
            parts += [headings[group.heading]] if group.heading else []
            for row in group.rows:
                cells = [np.concatenate([strips[panel.label], panel.clip_FHW3[index]]) for panel in row]
                parts.append(np.concatenate(cells + [empty_HW3] * (columns - len(row)), axis=1))
        frame_HW3 = np.concatenate(parts)
        yield frame_HW3[: len(frame_HW3) // 2 * 2]


def strip(groups: Sequence[Group]) -> np.ndarray:
    """One picture (H, W, 3) uint8: a row for each clip, its evenly chosen frames beside each other."""
    rows = []
    for group in groups:
        # the base model's clip stands in each row of the grid
        for panel in {id(panel): panel for row in group.rows for panel in row}.values():
            label = ", ".join(filter(None, (group.heading, panel.label)))
            pictures_HW3 = _chosen_frames(panel.clip_FHW3)
            rows += [label_strip(label, pictures_HW3.shape[1]), pictures_HW3]
    return np.concatenate(rows)


def _chosen_frames(clip_FHW3: np.ndarray) -> np.ndarray:
    num_frames, height, width = clip_FHW3.shape[:3]
    chosen = np.linspace(0, num_frames - 1, min(MAX_STRIP, num_frames)).round().astype(int)
    scale = min(1, MAX_STRIP_WIDTH / width)
    room = round(height * scale), round(width * scale)
    return np.concatenate([fit(clip_FHW3[index], *room) for index in chosen], axis=1)
