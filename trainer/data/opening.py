"""Pictures opened with Pillow's own readers, whatever other node packs have switched, registered or replaced in Pillow.

ComfyUI itself sets `ImageFile.LOAD_TRUNCATED_IMAGES` for a moment when a picture does not load, and packs set it for
good: half a picture must not become a training sample by that. Nothing of the process is changed while a file is read,
since another thread may rely on it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    AvifImagePlugin = None

from . import colour, png

Result = TypeVar("Result")

DISTURBED = (Warning, Image.DecompressionBombError)
"""What Pillow raises over a good picture where warnings are errors, or where a pack has lowered MAX_IMAGE_PIXELS."""

_LOCK = threading.RLock()

_READERS = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile), (0, png.SIGNATURE, PngImagePlugin.PngImageFile),
    (0, b"GIF87a", GifImagePlugin.GifImageFile), (0, b"GIF89a", GifImagePlugin.GifImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile), (0, b"BM", BmpImagePlugin.BmpImageFile),
    *((0, mark, TiffImagePlugin.TiffImageFile) for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((4, mark, AvifImagePlugin.AvifImageFile) for mark in (b"ftypavif", b"ftypavis") if AvifImagePlugin),
)
"""(offset, bytes, class): by these a file is opened; files of other kinds by what is registered with Pillow."""


class _Whole(ImageFile.ImageFile):
    """Mixed in behind a reader's class: what is cut off or broken is an error whatever LOAD_TRUNCATED_IMAGES says.

    Its `load` is Pillow's own, which looks the switch up among other globals.
    """

    load = types.FunctionType(
        ImageFile.ImageFile.load.__code__, {**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False}, "load",
        ImageFile.ImageFile.load.__defaults__, ImageFile.ImageFile.load.__closure__)


class _WholeJpeg(_Whole):
    def load_read(self, num_bytes: int) -> bytes:
        """Pillow's own would end a file that was cut off, where LOAD_TRUNCATED_IMAGES is set."""
        return self.fp.read(num_bytes)


@functools.cache
def _whole(reader: type[ImageFile.ImageFile]) -> type[ImageFile.ImageFile]:
    if issubclass(reader, JpegImagePlugin.JpegImageFile):
        return type(reader.__name__, (_WholeJpeg, reader, _Whole), {})
    return type(reader.__name__, (reader, _Whole), {})


def opened(data: bytes) -> Image.Image:
    """A picture, not yet decoded.

    Its `info` has "icc_profile", bytes, or "encoding", a colour.Encoding, if its colours are not sRGB's.

    Raises:
        UnidentifiedImageError: no reader takes it.
        OSError, SyntaxError, ValueError and more: as Pillow's readers.
    """
    reader = next((reader for offset, mark, reader in _READERS if data.startswith(mark, offset)), None)
    if reader is None:
        image = Image.open(io.BytesIO(data))
        if isinstance(image, ImageFile.ImageFile):
            image.__class__ = _whole(type(image))
        return image
    found = png.read(data) if reader is PngImagePlugin.PngImageFile else None
    try:
        image = _whole(reader)(io.BytesIO(found.data if found else data))
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise UnidentifiedImageError(str(error)) from None
    image.info.update(found.info if found else {})
    if image.format == "AVIF" and "icc_profile" not in image.info:
        image.info["encoding"] = _avif_encoding(data)
    return image


def _avif_encoding(data: bytes) -> colour.Encoding | None:
    """By the file's colour box (ISO/IEC 14496-12, 12.1.5), which Pillow does not look at."""
    place = data.find(b"colrnclx")
    return colour.Encoding.of(*struct.unpack_from(">2H", data, place + 8)) if 0 < place < len(data) - 12 else None


def undisturbed(work: Callable[..., Result]) -> Callable[..., Result]:
    """A function that is done once more, with Pillow's limit lifted and its warnings ignored, where these stop it."""

    @functools.wraps(work)
    def twice(*arguments, **settings):
        try:
            return work(*arguments, **settings)
        except DISTURBED:
            with calm():
                return work(*arguments, **settings)

    return twice


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """No warning is an error and MAX_IMAGE_PIXELS does not count; for the whole process, so only where it must be."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
