"""From a picture's file to pixels; animations are detected here and read by animations.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from ..base.errors import UserError
from . import colour, profiles
from .opening import DISTURBED, opened, undisturbed

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Read with Pillow: pictures, and animated gif, webp, png and avif."""

ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
"""Formats in which several frames are an animation; in the others they are pages or previews."""

_TURNED = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""PNG chunks that can hold an orientation; they may follow the pixels, so that the file must be decoded to know it."""

MAX_PIXELS = 89_478_485
"""Pillow's default limit (a quarter of a GiB of 24-bit pixels), checked here because other node packs change it."""

COLOUR = "colour"
"""`reading` of pictures whose colours are converted to sRGB."""

_AVIF, _HEIC = (b"ftypavif", b"ftypavis"), (b"ftypheic", b"ftypheix", b"ftypmif1")

_CLIP_MARKS = ((4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"))
"""(offset, bytes, extension): signatures of clips."""


@contextmanager
def open_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """Opens a picture without decoding it; any error inside the context but MemoryError becomes a UserError.

    Raises:
        UserError: the file is not a picture, is truncated, or has more than MAX_PIXELS (a decompression bomb).
        opening.DISTURBED: by another pack's doing; `opening.undisturbed` is for this.
    """
    try:
        image = opened(data)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{name} has too many pixels to be opened safely; scale it down.")
        yield image
    except (UserError, MemoryError, *DISTURBED):
        raise
    except UnidentifiedImageError:
        raise UserError(_not_a_picture(data, name)) from None
    except Exception as error:  # decoders raise whatever they like over damaged files
        raise UserError(f"{name} is damaged ({error}); export or download it again.") from None


def _not_a_picture(data: bytes, name: str) -> str:
    if data[4:12] in _AVIF and not features.check("avif"):
        return f"{name} needs a Pillow that reads avif (11.3 and newer); save it as png, or update Pillow."
    if data[4:12] in _AVIF:
        return f"{name} is damaged; export or download it again."
    if data[4:12] in _HEIC:
        return f"{name} is a HEIC photograph, which is not read; export it as jpg."
    for offset, mark, suffix in _CLIP_MARKS:
        if data[offset:].startswith(mark):
            return f"{name} is a clip with a picture's name; rename it to end in {suffix}."
    return f"{name} is not a picture Pillow can read; save it again as png or jpg."


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's file holds."""

    width: int
    """As it is shown, after EXIF's orientation."""
    height: int
    is_animated: bool
    """Whether it is an animation; the other fields are not known then."""
    is_transparent: bool = False
    pages: int = 1
    """Of a TIFF; the first is the picture."""
    reading: str = ""
    """What was done to its pixels that earlier versions did not do; part of the names of its cache files."""
    remarks: tuple[str, ...] = ()
    """Clauses for the notes."""


@undisturbed
def probe(data: bytes, name: str) -> Picture:
    """Read a picture's file to its end, so that damage is found now and not in training.

    Raises:
        UserError: as open_image; or the picture is fully transparent.
    """
    with open_image(data, name) as image:
        frames = getattr(image, "n_frames", 1)
        pages = frames if image.format == "TIFF" else 1
        reading, remarks = _colours(image)
        if frames > 1 and image.format in ANIMATED:
            return Picture(0, 0, is_animated=True, reading=reading, remarks=remarks)
        if image.format == "PNG" and not _is_layered(image) and not any(mark in data for mark in _TURNED):
            # every chunk's checksum was compared: as sure as decoding, and much faster
            return Picture(*image.size, is_animated=False, reading=reading, remarks=remarks)
        if image.format == "JPEG":
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            width, height = image.size
            # reads all of the file, computes a 64th of the pixels
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
            return Picture(*((height, width) if turned else (width, height)), is_animated=False,
                           reading=reading, remarks=remarks)
        image.load()
        upright = ImageOps.exif_transpose(image)
        least, most = _alpha(upright).getextrema() if _is_layered(upright) else (255, 255)
        if most == 0:
            raise UserError(f"{name} is transparent all over; export it again with something to see.")
        return Picture(*upright.size, is_animated=False, is_transparent=least < 255, pages=pages,
                       reading=reading, remarks=remarks)


@undisturbed
def open_picture(data: bytes, name: str, background: str = "white") -> Image.Image:
    """Decode a picture to 8-bit RGB, rotated as its EXIF says, composited on the background colour.

    Raises:
        UserError: as open_image.
    """
    with open_image(data, name) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image), background)


def to_rgb(image: Image.Image, background: str = "white", is_shown: bool = True) -> Image.Image:
    """8-bit sRGB, composited on the background colour where the image has alpha.

    Args:
        is_shown: whether colours are meant as its profile says; False takes the numbers as they are, as for masks.
    """
    if _is_deep(image):
        image = _eight_bits(image)
    shown = _shown(image) if is_shown else None
    if _is_layered(image):
        layered = image.convert("RGBA")
        if shown is not None:
            shown.putalpha(layered.getchannel("A"))
        paper = Image.new("RGBA", layered.size, background)
        return Image.alpha_composite(paper, shown or layered).convert("RGB")
    return shown or image.convert("RGB")


def _shown(image: Image.Image) -> Image.Image | None:
    """The colours alone in sRGB, mode RGB; None where they are sRGB, or nothing says what they are."""
    encoding, profile = image.info.get("encoding"), image.info.get("icc_profile")
    if encoding is None and (profile is None or not _colours(image)[0]):
        return None
    plain, mode = image.convert("RGBA") if _is_layered(image) else image, _mode(image)
    if encoding is not None:
        return Image.fromarray(colour.to_srgb(np.asarray(plain.convert("RGB")), encoding))
    return profiles.convert(plain.convert("RGB").getchannel(0) if mode == "L" else plain.convert(mode), profile)


def _colours(image: Image.Image) -> tuple[str, tuple[str, ...]]:
    """`reading` and `remarks` of a Picture."""
    profile = image.info.get("icc_profile")
    if profile is None:
        return COLOUR if image.info.get("encoding") else "", ()
    try:
        return "" if profiles.is_srgb(profile, _mode(image)) else COLOUR, ()
    except profiles.Unusable as error:
        return "", (f"its colour profile is ignored, since {error}; export it as sRGB if its colours look wrong.",)


def _mode(image: Image.Image) -> str:
    """Of its colours alone, as profiles tell them apart."""
    if image.mode == "CMYK":
        return "CMYK"
    return "L" if image.mode in ("1", "L", "LA", "La") or _is_deep(image) else "RGB"


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits and more: Pillow clips it to 255 when it converts; this keeps the high byte instead."""
    samples = np.asarray(image).astype(np.float32)
    most = samples.max(initial=0)
    full_scale = 65535.0 if most > 255 else 1.0 if image.mode == "F" and most <= 1 else 255.0
    grey = Image.fromarray((samples / full_scale * 255).clip(0, 255).astype(np.uint8))
    grey.info = {key: image.info[key] for key in ("icc_profile", "encoding") if key in image.info}
    return grey


@undisturbed
def open_alpha(data: bytes, name: str) -> Image.Image:
    """The alpha channel of a picture, rotated as its EXIF says: 8-bit grey, white if it has none.

    Raises:
        UserError: as open_image.
    """
    with open_image(data, name) as image:
        image.load()
        return _alpha(ImageOps.exif_transpose(image))


def fit(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """Scale to cover width x height and crop the centre, in one pass: (height, width, channels of image) uint8."""
    return np.asarray(image.resize((width, height), resample, box=crop(image.size, width, height)))


def crop(size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the centre crop of a picture of this size to the aspect ratio width : height."""
    scale = max(width / size[0], height / size[1])
    crop_width, crop_height = width / scale, height / scale
    left, top = (size[0] - crop_width) / 2, (size[1] - crop_height) / 2
    # must not pass the picture's edge by a rounding error
    return max(0.0, left), max(0.0, top), min(size[0], left + crop_width), min(size[1], top + crop_height)


def _is_layered(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")
