"""ICC profiles and coloured clips, made from numbers alone."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

DISPLAY_P3 = (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)
ADOBE_RGB = (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)
SRGB = (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)
_D50 = (0.9642, 1.0, 0.8249)
_TO_D50 = np.array([[1.0478112, 0.0228866, -0.0501270], [0.0295424, 0.9904844, -0.0170491],
                    [-0.0092345, 0.0150436, 0.7521316]])
"""Bradford, from D65 (Lindbloom)."""


def rgb_profile(primaries: Sequence[tuple[float, float]], gamma: float | None) -> bytes:
    """A matrix profile of primaries (x, y) with white D65; gamma None is sRGB's curve."""
    corners = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = _TO_D50 @ (corners * np.linalg.solve(corners, white))
    curve = srgb_curve() if gamma is None else _gamma(gamma)
    tags = {f"{name}XYZ".encode(): _xyz(columns[:, i]) for i, name in enumerate("rgb")}
    return _profile(b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def gray_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile(lab_of: Callable[[tuple[int, int, int, int]], tuple[float, float, float]]) -> bytes:
    """A table profile; `lab_of` gives L (0..100), a, b of each of the 16 corners of full and no ink."""
    table = b"".join(struct.pack(">3H", round(light * 652.8), round((a + 128) * 256), round((b + 128) * 256))
                     for light, a, b in map(lab_of, itertools.product((0, 1), repeat=4)))
    straight = struct.pack(">2H", 0, 65535)
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    a2b = (b"mft2\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + struct.pack(">2H", 2, 2) + straight * 4 + table
           + straight * 3)
    return _profile(b"CMYK", b"Lab ", {b"A2B0": a2b}, kind=b"prtr")


def srgb_curve() -> bytes:
    signal = np.linspace(0, 1, 1024)
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + (light * 65535 + 0.5).astype(">u2").tobytes()


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _xyz(numbers: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(number * 65536) for number in numbers))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {b"wtpt": _xyz(_D50), **tags}
    place, entries, content = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        entries += name + struct.pack(">2I", place + len(content), len(body))
        content += body
    size = place + len(content)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02400000, kind, space, connection, bytes(12), b"acsp")
    head += bytes(28) + struct.pack(">3i", *(round(number * 65536) for number in _D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + content


def film(
    path: Path, frames: Sequence[av.VideoFrame], codec: str = "libx264", rate: Fraction | int = 16,
    options: dict | None = None, aspect: Fraction | None = None, tags: dict | None = None, **metadata: str,
) -> Path:
    """A clip of given frames.

    Args:
        aspect: of a pixel, as the encoder writes it.
        tags: colorspace, color_trc, color_primaries and color_range by their numbers in H.273.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        stream.metadata.update(metadata)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, number in (tags or {}).items():
            setattr(stream.codec_context, name, number)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain(pixels_HW3: np.ndarray, form: str = "yuv420p") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(pixels_HW3, format="rgb24").reformat(format=form)


def deep(signal_N3: np.ndarray, weights: tuple[float, float], side: int = 32) -> av.VideoFrame:
    """Bars of red, green and blue signals in 0..1 as 10-bit limited-range yuv420p10le.

    Args:
        weights: of red and blue in luma.
    """
    red, green, blue = np.repeat(np.asarray(signal_N3, float), side, 0).T
    luma = weights[0] * red + (1 - sum(weights)) * green + weights[1] * blue
    planes = (64 + 876 * luma, 512 + 896 * (blue - luma) / 2 / (1 - weights[1]),
              512 + 896 * (red - luma) / 2 / (1 - weights[0]))
    frame = av.VideoFrame(len(luma), 64, "yuv420p10le")
    for number, (plane, values) in enumerate(zip(frame.planes, planes, strict=True)):
        values = np.rint(values[::2] if number else values).astype("<u2")
        padded = np.zeros((plane.height, plane.line_size // 2), "<u2")
        padded[:, :len(values)] = values
        plane.update(padded.tobytes())
    return frame
