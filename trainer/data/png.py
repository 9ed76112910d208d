"""The chunks of a PNG: whether all are whole, and what of them concerns the pixels.

Pillow refuses whole files for the size of their texts or colour profile, and forgives broken ones where another pack
has switched that; so it is given only the chunks that it needs. Source: W3C, Portable Network Graphics, Third Edition.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from . import colour

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_INFLATED = 64 * 2**20
"""Bytes of a compressed text or profile that are looked at."""

_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"IEND"})

_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
"""Keywords of texts that can hold an orientation."""

_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[0-9]')


@dataclass(frozen=True, slots=True)
class Png:
    """What of a file is read."""

    data: bytes
    """A PNG of the same pixels and orientation, without what else was in it."""
    info: dict
    """"icc_profile": bytes, or "encoding": colour.Encoding, or nothing where the pixels are sRGB."""


def read(data: bytes) -> Png:
    """Check every chunk's checksum, and keep what concerns the pixels.

    Raises:
        OSError: the file is cut off, or a checksum is wrong.
    """
    kept, colours = [SIGNATURE], {}
    for kind, body in _chunks(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            kind, body = _orientation(kind, bytes(body))
        elif kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            colours[kind] = bytes(body)
        if kind in _PIXELS or kind in (b"tEXt", b"iTXt"):
            kept += _written(kind, body)
    return Png(b"".join(kept), _info(colours))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each, up to IEND."""
    view, place, kind = memoryview(data), len(SIGNATURE), b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise OSError("it is cut off")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise OSError("it is cut off")
        if zlib.crc32(view[place + 4:end]) != struct.unpack_from(">I", data, end)[0]:
            raise OSError(f"wrong checksum in {kind.decode('latin-1')}")
        yield kind, view[place + 8:end]
        place = end + 4


def _written(kind: bytes, body: bytes | memoryview) -> tuple[bytes, bytes, bytes | memoryview, bytes]:
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _orientation(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A text chunk that holds nothing but the orientation of the given one; (b"", b"") if that has none."""
    keyword, _, text = body.partition(b"\0")
    if keyword == _EXIF and kind in (b"tEXt", b"zTXt"):
        exif = text if kind == b"tEXt" else _inflated(text[1:])
        return (b"tEXt", keyword + b"\0" + exif) if exif else (b"", b"")
    if keyword == _XMP and kind == b"iTXt":
        text, is_compressed = text[2:].split(b"\0", 2)[-1], text[:1] == b"\1"
        found = _ORIENTATION.search(_inflated(text) if is_compressed else text)
        return (b"iTXt", keyword + b"\0\0\0\0\0" + found.group()) if found else (b"", b"")
    return b"", b""


def _inflated(data: bytes) -> bytes:
    """Nothing if it is broken."""
    try:
        return zlib.decompressobj().decompress(data, MAX_INFLATED)
    except zlib.error:
        return b""


def _info(chunks: dict[bytes, bytes]) -> dict:
    """Of several statements about the colours the first counts: cICP, iCCP, sRGB, gAMA with cHRM."""
    if len(chunks.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, is_full = chunks[b"cICP"]
        return {"encoding": colour.Encoding.of(primaries, transfer)} if (matrix, is_full) == (0, 1) else {}
    if b"iCCP" in chunks:
        return {"icc_profile": _inflated(chunks[b"iCCP"].partition(b"\0")[2][1:])}
    if b"sRGB" in chunks:
        return {}
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 100_000 if len(chunks.get(b"gAMA", b"")) == 4 else 0
    places = [number / 100_000 for number in struct.unpack(">8I", chunks[b"cHRM"])] \
        if len(chunks.get(b"cHRM", b"")) == 32 else []
    white, *corners = zip(places[::2], places[1::2], strict=True) if places else (None,)
    return {"encoding": colour.Encoding.measured(gamma, white, corners)}
