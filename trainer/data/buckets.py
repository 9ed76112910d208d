"""Training sizes: aspect-ratio buckets that keep the area, with sides that the model family takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from ..model.family import ModelFamily
from ..settings.data import parse_frame_buckets

MAX_ASPECT = 4.0
"""The longest bucket is four times as long as it is wide; longer pictures are cropped."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A legal training size in pixels and frames."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f"x{self.frames}" if self.frames > 1 else "")


def read_frames(text: str, family: ModelFamily) -> tuple[int, ...]:
    """The frame counts in a list such as "1, 33", ascending; 1 (a picture) is always among them.

    Raises:
        UserError: an entry that is not a whole number, or a number of frames that the family does not take.
    """
    found = parse_frame_buckets(text)
    for frames in found:
        family.check_frames(frames)
    return found


@cache
def sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """All (width, height) of about resolution^2 pixels, from 1:4 to 4:1, whose sides are multiples of `multiple`."""
    area = resolution * resolution
    found = set()
    side = multiple
    while side <= max(multiple, resolution * math.sqrt(MAX_ASPECT)):
        other = max(multiple, round(area / side / multiple) * multiple)
        if max(side, other) / min(side, other) <= MAX_ASPECT:
            found.update(((side, other), (other, side)))
        side += multiple
    return tuple(sorted(found))


@cache
def choose(width: int, height: int, resolution: int, multiple: int, frames: int = 1) -> Bucket:
    """The bucket of so many frames whose aspect ratio is nearest to that of a width x height picture.

    Of two equally near ones the one whose area is nearer to resolution^2 pixels is taken.

    Args:
        multiple: `ModelFamily.side_multiple`.
    """
    aspect, area = math.log(width / height), resolution * resolution

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - aspect), 9), abs(size[0] * size[1] - area)

    best_width, best_height = min(sizes(resolution, multiple), key=distance)
    return Bucket(frames=frames, height=best_height, width=best_width)


def needs_upscale(width: int, height: int, bucket: Bucket) -> bool:
    """Whether a width x height picture is too small to fill the bucket."""
    return width < bucket.width or height < bucket.height


def share_kept(width: int, height: int, bucket: Bucket) -> float:
    """How much of a width x height picture is left when it is cropped to the bucket's shape, 0..1."""
    aspect, wanted = width / height, bucket.width / bucket.height
    return min(aspect, wanted) / max(aspect, wanted)
