"""Animated gif, webp and png as clips, read with Pillow: each frame is shown as long as the file says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image

from . import pictures
from .opening import DISTURBED, calm, undisturbed
from .windows import Source

ROUNDING = Fraction(1, 1000)
"""Seconds: Pillow gives durations in milliseconds."""

UNSET = Fraction(1, 10)
"""Seconds that a frame with the duration 0 is shown, as in browsers."""


@undisturbed
def probe(path: Path, name: str, reading: str = "") -> Source:
    """Size, frames and times of an animation.

    Args:
        reading: as in pictures.Picture.

    Raises:
        UserError: the file is damaged.
    """
    width = height = count = 0
    seconds = last = Fraction(0)
    for duration, image in _frames(path, name):
        width, height = image.size
        count, seconds, last = count + 1, seconds + duration, duration
    return Source(width, height, count, seconds, last, ROUNDING, is_animation=True, reading=reading)


def timed(path: Path, name: str, background: str) -> Iterator[tuple[Fraction, Image.Image]]:
    """(seconds after the first frame, 8-bit RGB picture) of every frame; one frame is in memory at a time.

    Raises:
        UserError: the file is damaged.
    """
    done = 0
    try:
        for each in _timed(path, name, background):
            yield each
            done += 1
    except DISTURBED:
        with calm():
            yield from itertools.islice(_timed(path, name, background), done, None)


def _timed(path: Path, name: str, background: str) -> Iterator[tuple[Fraction, Image.Image]]:
    seconds = Fraction(0)
    for duration, image in _frames(path, name):
        yield seconds, pictures.to_rgb(image, background)
        seconds += duration


def _frames(path: Path, name: str) -> Iterator[tuple[Fraction, Image.Image]]:
    with pictures.open_image(path.read_bytes(), name) as image:
        for index in range(image.n_frames):
            image.seek(index)
            image.load()  # Pillow knows the duration of a webp frame only after this
            milliseconds = Fraction(image.info.get("duration") or 0)
            yield milliseconds / 1000 or UNSET, image
