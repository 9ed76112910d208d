"""Thumbnails of samples, cropped and cut as in training, and the folder in which they are kept."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from ..base.errors import UserError, content_hash
from ..base.files import Stamp, replacing
from . import pictures, video
from .manifest import Sample
from .masks import Mask, grey_of

VERSION = 2
"""Thumbnails of another version are made anew."""

MAX_SIDE = 192
"""Pixels of the longer side, at most."""

MAX_FRAMES = 40
"""Of a moving thumbnail; of longer windows every second frame is shown, or every third."""

QUALITY = 75

UNLEARNED = 0.3
"""The brightness of parts that the mask excludes from training is multiplied by this."""

MAX_BYTES = 256 * 2**20
"""Total size of the thumbnails that are kept."""


def key_of(sample: Sample, start: int, is_moving: bool) -> str:
    """The key of a thumbnail: a hash of all that its pixels depend on."""
    mask = (sample.mask.digest, sample.mask.is_alpha) if sample.mask else None
    return content_hash(
        "thumbnail", VERSION, sample.digest, str(sample.bucket), sample.background, mask, start,
        sample.family.fps, is_moving, *sample.treatment)


def make(sample: Sample, start: int, is_moving: bool) -> bytes:
    """A webp of a picture, or of the first frame of a window; an animation of the whole window if `is_moving`.

    Raises:
        UserError: the file is damaged, changed or gone.
    """
    try:
        mask = _mask(sample.mask, sample) if sample.mask else None
        count = sample.bucket.frames if is_moving else 1
        step = math.ceil(count / MAX_FRAMES)
        frames = [_small(image, sample, mask) for number, image in enumerate(_frames(sample, start, count))
                  if number % step == 0]
        if Stamp.of(sample.path) != sample.stamp:
            raise UserError(f"{sample.name} changed since it was read; the sheet reads it again.")
    except OSError as error:
        raise UserError(f"{sample.name} is gone or cannot be read ({error.strerror or error}).") from None
    if not frames:
        raise UserError(f"{sample.name} has no frame at {start / sample.family.fps:g} s; export or download it again.")
    out = io.BytesIO()
    if is_moving:
        frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=1000 * step // sample.family.fps,
                       loop=0, quality=QUALITY, method=0)
    else:
        frames[0].save(out, "WEBP", quality=QUALITY, method=2)
    return out.getvalue()


def _frames(sample: Sample, start: int, count: int) -> Iterator[Image.Image]:
    background = sample.background or "white"
    if sample.source is None:
        return iter([pictures.open_picture(sample.path.read_bytes(), sample.name, background)])
    return video.frames(sample.path, sample.name, sample.source, start, count, sample.family.fps, background)


def _small(image: Image.Image, sample: Sample, mask: Image.Image | None) -> Image.Image:
    """The crop that training sees, scaled directly to the thumbnail instead of via the bucket's size."""
    box = pictures.crop(image.size, sample.bucket.width, sample.bucket.height)
    small = image.resize(_size(sample), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return small if mask is None else Image.composite(small, small.point(lambda value: value * UNLEARNED), mask)


def _size(sample: Sample) -> tuple[int, int]:
    scale = min(1.0, MAX_SIDE / max(sample.bucket.width, sample.bucket.height))
    return max(1, round(sample.bucket.width * scale)), max(1, round(sample.bucket.height * scale))


def _mask(mask: Mask, sample: Sample) -> Image.Image:
    grey = grey_of(mask)
    box = pictures.crop(grey.size, sample.bucket.width, sample.bucket.height)
    return grey.resize(_size(sample), Image.Resampling.BOX, box=box)


class Shelf:
    """Thumbnails by key in one folder of bounded size; not thread-safe. A full disk costs only time."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes: int | None = None

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The thumbnail that is kept under a key, or else the result of `make`, which is then kept."""
        path = self._folder / f"{key}.webp"
        with contextlib.suppress(OSError):
            return path.read_bytes()
        content = make()
        with contextlib.suppress(OSError):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            self._account(len(content))
        return content

    def _account(self, num_bytes: int) -> None:
        """Add to the total; above the limit delete the oldest down to 3/4 of it, so that this is seldom done."""
        if self._bytes is not None:
            self._bytes += num_bytes
            if self._bytes <= self._max_bytes:
                return
        kept = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):
                status = entry.stat()
                kept.append((status.st_mtime_ns, entry.path, status.st_size))
        self._bytes = sum(size for *_, size in kept)
        if self._bytes <= self._max_bytes:
            return
        for _, path, size in sorted(kept):
            with contextlib.suppress(OSError):
                os.unlink(path)
                self._bytes -= size
            if self._bytes <= self._max_bytes * 3 // 4:
                return
