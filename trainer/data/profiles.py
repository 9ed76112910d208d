"""ICC colour profiles: pictures as the eye saw them, in sRGB. Conversion is LittleCMS's, through Pillow."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

SAME = 2
"""A profile that moves no colour further than this is sRGB: many programs write their own copy of it."""

MAX_BYTES = 16 * 2**20

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the colour space of a profile."""


class Unusable(ValueError):
    """A profile that cannot be followed; the message is a clause that says why."""


def convert(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture (RGB, L or CMYK) in sRGB, or itself where the profile is sRGB.

    Raises:
        Unusable: see there; the picture is then to be used as if it had no profile.
    """
    mode, transform = _transform(profile, image.mode)
    if transform is None:
        return image
    return ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)


def is_srgb(profile: bytes, mode: str) -> bool:
    """Whether the profile changes nothing in pictures of this mode (RGB, L or CMYK).

    Raises:
        Unusable: as `convert`.
    """
    return _transform(profile, mode)[1] is None


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that the profile is for, and how it becomes sRGB; None where it is."""
    if len(profile) > MAX_BYTES:
        raise Unusable(f"it has {len(profile) // 2**20} MiB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        wanted = _MODES.get(space)
        # a grey picture is often given an RGB profile, and means equal red, green and blue
        if wanted != mode and (wanted, mode) != ("RGB", "L"):
            raise Unusable(f"it is for {space} pictures")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), wanted, "RGB")
        colours = _every_colour(wanted)
        moved = ImageCms.applyTransform(colours, transform)
    except Unusable:
        raise
    except ImportError:
        raise Unusable("this Pillow is built without LittleCMS") from None
    except Exception:  # LittleCMS and Pillow raise whatever they like over damaged profiles
        raise Unusable("it is broken") from None
    if wanted != "CMYK":
        distance = np.abs(np.asarray(moved).astype(int) - np.asarray(colours.convert("RGB")))
        if distance.max() <= SAME:
            return wanted, None
    return wanted, transform


def _every_colour(mode: str) -> Image.Image:
    """A small picture with colours from everywhere in the mode's space."""
    steps = np.linspace(0, 255, 256 if mode == "L" else 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(*[steps] * len(mode)), -1)
    return Image.frombytes(mode, (colours.size // len(mode), 1), colours.tobytes())
