"""From a file of one picture to pixels; animations among them are told apart and read by `animations`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .buckets import Bucket
from .config import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""Read with Pillow: pictures, and animated gif, webp and png."""

_CLIP_MARKS = ((4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"))
"""Where in a clip's first bytes what stands, and how such a file is called."""


@contextmanager
def open_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """Pillow's view of a file, not decoded yet; whatever goes wrong while it is read becomes a sentence.

    Raises:
        UserError: not a picture, truncated, or so large that Pillow takes it for an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        for offset, mark, suffix in _CLIP_MARKS:
            if data[offset:].startswith(mark):
                raise UserError(f"{name} is a clip with a picture's name; rename it to end in {suffix}.") from None
        raise UserError(f"{name} is not a picture Pillow can read; save it again as png or jpg.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name} has too many pixels to be opened safely; scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is damaged ({error}); export or download it again.") from None


def is_animated(data: bytes, name: str) -> bool:
    """Whether the file holds more than one frame.

    Raises:
        UserError: as open_image.
    """
    with open_image(data, name) as image:
        return getattr(image, "n_frames", 1) > 1


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decode a whole picture to 8-bit RGB, turned as its EXIF says, alpha laid on white.

    Raises:
        UserError: as open_image.
    """
    with open_image(data, name) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, alpha laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit grey to 255 when it converts; keep the high byte instead.
        samples = np.asarray(image).astype(np.float32)
        full_scale = 65535.0 if samples.max(initial=0) > 255 else 255.0
        return Image.fromarray((samples / full_scale * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, bucket: Bucket) -> np.ndarray:
    """Scale to cover the bucket and crop the centre, in one Lanczos pass: (1, height, width, 3) uint8."""
    scale = max(bucket.width / image.width, bucket.height / image.height)
    crop_width, crop_height = bucket.width / scale, bucket.height / scale
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    # box must not pass the picture's edge by a rounding error
    box = (max(0.0, left), max(0.0, top), min(image.width, left + crop_width), min(image.height, top + crop_height))
    sized = image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(sized)[None]


def read(path: Path, bucket: Bucket) -> np.ndarray:
    """The pixels a picture is trained on: pixels_FHW3 uint8, (1, bucket.height, bucket.width, 3)."""
    return fit(open_picture(path.read_bytes(), path.name), bucket)
