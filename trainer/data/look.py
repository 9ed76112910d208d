"""From a decoded frame of a clip to what a player shows: colours, transparency, shape of pixels, rotation, fields."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from ..base.errors import UserError
from . import colour, pictures
from .colour import Encoding

ALPHA, FIELDS, HDR, PIXELS, OTHER_STREAM = "alpha", "fields", "hdr", "pixels", "stream"
"""Words of Source.reading: what is done to a clip that earlier versions did not do; with pictures.COLOUR."""

MIN_STRETCH = Fraction(1, 100)
"""Pixels that are this nearly square count as square: programs that scale leave such remainders."""

MAX_STRETCH = 8
"""More is taken for a broken flag."""

_UNSPECIFIED = 2
"""In H.273, of matrix, primaries and transfer function."""

_UNREADABLE = {8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "Y'D'zD'x", 12: "derived from the primaries",
               13: "derived from the primaries, with constant luminance", 14: "ICtCp"}

_MATRICES = {1: "ITU709", 7: "SMPTE240M"}
"""Colour matrices that older PyAV does not apply by itself: FFmpeg's AVColorSpace number to PyAV's name."""

_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270, (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90, (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM, (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""The transposition for a display matrix (a, b, c, d), which maps x' = ax + cy and y' = bx + dy."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the frames of a clip are meant to be seen."""

    stretch: Fraction
    """Width of a pixel divided by its height."""
    matrix: int
    """By its number in H.273."""
    encoding: Encoding | None
    """None: its numbers are taken for sRGB."""
    has_alpha: bool

    @classmethod
    def of(cls, frame: av.VideoFrame, stream: av.VideoStream, name: str) -> Look:
        """Of the clip that a frame is from.

        Raises:
            UserError: its colours are stored in a form that is not read.
        """
        matrix, primaries, transfer = (
            _tag(frame, stream, each) for each in ("colorspace", "color_primaries", "color_trc"))
        if matrix in _UNREADABLE:
            raise UserError(f"{name} has its colours in a form that is not read ({_UNREADABLE[matrix]}); export it "
                            "with the colours of BT.709.")
        if matrix == 9 and primaries == _UNSPECIFIED:
            primaries = 9
        encoding = Encoding.of(primaries, transfer)
        if encoding and not colour.is_known(matrix):
            matrix = 9 if primaries in (9, _UNSPECIFIED) else 1
        stretch = stream.sample_aspect_ratio or Fraction(1)
        if abs(stretch - 1) < MIN_STRETCH or not 1 / MAX_STRETCH < stretch < MAX_STRETCH:
            stretch = Fraction(1)
        return cls(stretch, matrix, encoding, _has_alpha(frame.format))

    @property
    def words(self) -> list[str]:
        """For Source.reading."""
        coloured = HDR if self.encoding and self.encoding.is_hdr else pictures.COLOUR if self.encoding else ""
        found = [PIXELS if self.stretch != 1 else "", coloured, ALPHA if self.has_alpha else ""]
        return [word for word in found if word]

    def image(self, frame: av.VideoFrame, background: str) -> Image.Image:
        """The frame as it is shown, in RGB."""
        image = Image.fromarray(self._pixels(frame))
        if self.has_alpha:
            image = pictures.to_rgb(image, background)
        width, height = image.size
        if self.stretch > 1:
            image = image.resize((round(width * self.stretch), height), Image.Resampling.BICUBIC)
        elif self.stretch < 1:
            image = image.resize((width, round(height / self.stretch)), Image.Resampling.BICUBIC)
        flag = frame.side_data.get("DISPLAYMATRIX")
        if flag is None:
            return image
        numbers = struct.unpack("=9i", bytes(flag))
        turn = _TURNS.get(tuple(round(numbers[index] / 65536) for index in (0, 1, 3, 4)))
        return image if turn is None else image.transpose(turn)

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """sRGB, with alpha where the clip has it: (height, width, 3 or 4) uint8."""
        layers = "rgba" if self.has_alpha else "rgb24"
        if self.encoding is None:
            matrix = _MATRICES.get(int(frame.colorspace))
            if matrix:
                frame = frame.reformat(format=layers, src_colorspace=matrix, dst_colorspace="DEFAULT")
            return frame.to_ndarray(format=layers)
        if frame.format.is_rgb:
            pixels = colour.to_srgb(frame.to_ndarray(format="rgb48le"), self.encoding)
        else:
            yuv = frame.reformat(format="yuv444p16le", dst_color_range="MPEG").to_ndarray()
            pixels = colour.to_srgb(yuv, self.encoding, self.matrix)
        if self.has_alpha:
            pixels = np.concatenate((pixels, frame.to_ndarray(format="rgba")[..., 3:]), -1)
        return pixels


def progressive(timed: Iterator[tuple[int, av.VideoFrame]], tick: Fraction) -> Iterator[tuple[int, av.VideoFrame]]:
    """The same times and frames; from the first interlaced one on, each frame's first field, filled up by bwdif."""
    graph, stamps = None, deque()
    for stamp, frame in timed:
        if graph is None and not frame.interlaced_frame:
            yield stamp, frame
            continue
        graph = graph or _deinterlacer(frame, tick)
        stamps.append(stamp)
        graph.push(frame)
        yield from _pulled(graph, stamps)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph, stamps)


def _deinterlacer(frame: av.VideoFrame, tick: Fraction) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add(
        "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base=str(tick),
        pixel_aspect="1/1", colorspace=str(int(frame.colorspace)), range=str(int(frame.color_range)))
    filled, sink = graph.add("bwdif", mode="send_frame", parity="auto", deint="interlaced"), graph.add("buffersink")
    source.link_to(filled)
    filled.link_to(sink)
    graph.configure()
    return graph


def _pulled(graph: av.filter.Graph, stamps: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield stamps.popleft(), frame


def _tag(frame: av.VideoFrame, stream: av.VideoStream, name: str) -> int:
    """Of the frame, which older PyAV does not tell, or else of the file."""
    told = getattr(frame, name, None)
    if told is None or int(told) == _UNSPECIFIED:
        told = getattr(stream.codec_context, name, None)
    return _UNSPECIFIED if told is None else int(told)


def _has_alpha(form: av.VideoFormat) -> bool:
    return form.name == "pal8" or any(component.is_alpha for component in form.components)
