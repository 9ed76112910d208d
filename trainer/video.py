"""From a file to pixels: the only decoder. Pictures now; clips come with a later version."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .buckets import Bucket
from .config import UserError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"})


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decode a whole picture to 8-bit RGB, turned as its EXIF says, alpha laid on white.

    Raises:
        UserError: not a picture, truncated, animated, or so large that Pillow takes it for an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{name} is animated; clips are not read yet, save one frame as a picture.")
            image.load()
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture Pillow can read; save it again as png or jpg.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name} has too many pixels to be opened safely; scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is damaged ({error}); export or download it again.") from None
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
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
    """The pixels a clip is trained on: pixels_FHW3 uint8, (bucket.frames, bucket.height, bucket.width, 3)."""
    return fit(open_picture(path.read_bytes(), path.name), bucket)
