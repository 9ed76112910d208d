"""From a clip's file to pixels, with PyAV: what is in it, and the frames of one window of it.

Frames are decoded from the keyframe before the window, turned and scaled one at a time: a film of any length
takes the memory of one window.
"""

from __future__ import annotations

import heapq
import math
import struct
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..base.errors import UserError
from . import animations, pictures, windows
from .buckets import Bucket
from .windows import Source

SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})

MAX_ROUNDING = Fraction(1, 1000)
"""Seconds. A coarser time base does not round more: files have one because their frames lie exactly on its ticks."""

MAX_REORDER = 32
"""Frames that may be stored before a frame that is shown earlier; codecs allow 16."""

MAX_GAP = 60
"""Seconds between two frames; more is taken for a broken timestamp."""

_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
"""Formats that FFmpeg may detect; otherwise a playlist with a clip's name would make it read other files."""

_MATRICES = {1: "ITU709", 7: "SMPTE240M"}
"""Colour matrices that older PyAV does not apply by itself: FFmpeg's AVColorSpace number to PyAV's name."""

_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270, (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90, (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM, (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""The transposition for a display matrix (a, b, c, d), which maps x' = ax + cy and y' = bx + dy."""


def probe(path: Path, name: str) -> Source:
    """Size, frames and times of a clip: reads every packet, decodes one frame.

    Raises:
        UserError: the file is not a clip, has no video, is cut off, or has no usable timestamps.
    """
    with _opened(path, name) as (container, stream):
        stamps, last_ticks = _presentation_times(container, stream, name)
        tick = stream.time_base
        # A cut Matroska file just ends; its head still says how long it was. Sound may last longer than video.
        missing = Fraction(container.duration or 0, av.time_base) - (int(stamps[-1]) + last_ticks) * tick
        if container.format.name.startswith("matroska") and len(container.streams) == 1 and missing > 1:
            raise UserError(f"{name} is cut off ({float(missing):.1f} s are missing at its end); "
                            "export or download it again.")
    with _opened(path, name) as (container, stream):
        stamp, frame = next(_decoded(container, stream, name), (None, None))
    if frame is None:
        raise UserError(f"{name} has no frame that can be decoded; export or download it again.")
    width, height = _upright(frame).size
    return Source(
        width=width,
        height=height,
        num_frames=len(stamps),
        seconds=(int(stamps[-1]) + last_ticks - stamp) * tick,
        last_seconds=last_ticks * tick,
        rounding=min(tick, MAX_ROUNDING),
        first=stamp * tick,
    )


def read(
    path: Path, name: str, source: Source, bucket: Bucket, start: int, fps: int, background: str = "white"
) -> np.ndarray:
    """The pixels a clip is trained on: pixels_FHW3 uint8, (bucket.frames, bucket.height, bucket.width, 3).

    Args:
        name: what messages call the file.
        source: the result of `probe`.
        start: the first frame, counted at `fps` frames a second.
        background: the colour under a transparent animation.

    Raises:
        UserError: the file is damaged in or before the window.
        OSError: the file is missing or unreadable.
    """
    pixels_FHW3 = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    count = 0
    for image in frames(path, name, source, start, bucket.frames, fps, background):
        pixels_FHW3[count] = pictures.fit(image, bucket.width, bucket.height)
        count += 1
    if count < bucket.frames:
        raise UserError(f"{name} ends after {count} of {bucket.frames} frames (frame {start} on, at {fps} fps); "
                        "export or download it again.")
    return pixels_FHW3


def frames(
    path: Path, name: str, source: Source, start: int, count: int, fps: int, background: str = "white"
) -> Iterator[Image.Image]:
    """`count` frames, `fps` a second, from frame `start` on, as shown, in full size, one after the other."""
    if source.is_animation:
        yield from windows.shown(animations.timed(path, name, background), source, start, count, fps)
        return
    timed = _timed(path, name, source, Fraction(start, fps))
    for frame in windows.shown(timed, source, start, count, fps):
        yield _upright(frame)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    path.stat()  # a missing file is an OSError of the system, not one of FFmpeg's
    try:
        with av.open(str(path.absolute()), options={"format_whitelist": _FORMATS}) as container:
            if not container.streams.video:
                raise UserError(f"{name} holds no video (sound alone?); replace it or take it out.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(_not_a_clip(path, name) or f"{name} is damaged or no clip ({reason}); "
                        "export or download it again.") from None


def _not_a_clip(path: Path, name: str) -> str | None:
    try:
        with Image.open(path) as image:
            suffix = f".{image.format.lower()}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"{name} is a picture with a clip's name; rename it to end in {suffix}."


def _presentation_times(container, stream, name: str) -> tuple[np.ndarray, int]:
    """Every frame's timestamp, ascending, and how long the last is shown, in ticks of the stream."""
    stamps, recent, last, last_ticks = array("q"), deque(maxlen=MAX_REORDER), None, 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise UserError(f"{name} is cut off or damaged after {len(stamps)} frames; export or download it again.")
        if packet.pts is None:
            raise UserError(f"{name} has frames without a timestamp; export it again as mp4.")
        if len(recent) == MAX_REORDER and packet.pts < min(recent):
            raise UserError(_broken(name, f"they run backwards at frame {len(stamps)}"))
        stamps.append(packet.pts)
        recent.append(packet.pts)
        if last is None or packet.pts > last:
            last, last_ticks = packet.pts, packet.duration or 0
    if not stamps:
        raise UserError(f"{name} holds no frame; export or download it again.")
    times = np.sort(np.frombuffer(stamps, np.int64))
    gaps = np.diff(times)
    if len(gaps) and (not gaps.any() or int(gaps.max()) * stream.time_base > MAX_GAP):
        raise UserError(_broken(name, f"two frames are {float(int(gaps.max()) * stream.time_base):g} s apart"))
    return times, int(last_ticks or (np.median(gaps) if len(gaps) else 0))


def _broken(name: str, what: str) -> str:
    return f"{name} has broken timestamps ({what}); export it again with a constant frame rate."


def _timed(path: Path, name: str, source: Source, seconds: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """(seconds after the first frame, frame) from a frame at or before `seconds` on."""
    for step_back in (0, 2, 10, None):
        with _opened(path, name) as (container, stream):
            target = seconds - step_back if step_back is not None else Fraction(0)
            # In avi a frame's time follows only from all frames before it, so there is no seeking.
            if target > 0 and container.format.name != "avi":
                try:
                    container.seek(math.floor((source.first + target) / stream.time_base), stream=stream)
                except av.FFmpegError:
                    continue  # a file that cannot be sought is read from its beginning
            is_first, previous = True, None
            for stamp, frame in _decoded(container, stream, name):
                time = stamp * stream.time_base - source.first
                if is_first and target > 0 and time > seconds:
                    break  # the seek went too far; try again from further back
                if previous is not None and time < previous:
                    raise UserError(_broken(name, f"they run backwards at {float(time):.2f} s"))
                is_first, previous = False, time
                yield time, frame
            if not is_first or target <= 0:
                return


def _decoded(container, stream, name: str) -> Iterator[tuple[int, av.VideoFrame]]:
    """(timestamp, frame) in the order in which frames are shown."""
    if container.format.name != "avi":
        for frame in container.decode(stream):
            if frame.pts is None:
                raise UserError(f"{name} has frames without a timestamp; export it again as mp4.")
            yield frame.pts, frame
        return
    # avi numbers frames as they are stored; shown in order, each takes the earliest number not yet taken
    stamps = []
    for packet in container.demux(stream):
        if packet.size:
            heapq.heappush(stamps, packet.pts)
        for frame in packet.decode():
            if stamps:
                yield heapq.heappop(stamps), frame


def _upright(frame: av.VideoFrame) -> Image.Image:
    """The frame as it is shown, in RGB."""
    flag = frame.side_data.get("DISPLAYMATRIX")
    matrix = _MATRICES.get(int(frame.colorspace))
    if matrix:
        frame = frame.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace="DEFAULT")
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if flag is None:
        return image
    numbers = struct.unpack("=9i", bytes(flag))
    turn = _TURNS.get(tuple(round(numbers[index] / 65536) for index in (0, 1, 3, 4)))
    return image if turn is None else image.transpose(turn)
