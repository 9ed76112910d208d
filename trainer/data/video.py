"""From a clip's file to pixels, with PyAV: what is in it, and the frames of one window of it.

Frames are decoded from the keyframe before the window, made what a player shows (look.py) and scaled one at a time: a
film of any length takes the memory of one window.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from ..base.errors import UserError
from . import animations, look, pictures, windows
from .buckets import Bucket
from .look import Look
from .streams import Damaged, decoded, opened
from .windows import Source

SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})

MAX_ROUNDING = Fraction(1, 1000)
"""Seconds. A coarser time base does not round more: files have one because their frames lie exactly on its ticks."""

MAX_REORDER = 32
"""Frames that may be stored before a frame that is shown earlier; codecs allow 16."""

MAX_GAP = 60
"""Seconds between two frames; more is taken for a broken timestamp."""

_BEFORE_FIELDS = Fraction(1, 2)
"""Seconds that are decoded before an interlaced window: its first frame is filled up from the one before it."""

_SLIDES = 5
"""Frames a second; a clip with fewer is a series of stills."""

_REMARKS = {
    look.HDR: "HDR, which is converted to what an ordinary screen shows (203 cd/m2 become white).",
    look.FIELDS: "interlaced, and is deinterlaced; a progressive copy would be sharper.",
}


def probe(path: Path, name: str) -> Source:
    """Size, frames and times of a clip: reads every packet, decodes one frame.

    Raises:
        UserError: the file is not a clip, has no video, is cut off, or has no usable timestamps.
    """
    with opened(path, name) as (container, stream):
        stamps, last_ticks = _presentation_times(container, stream, name)
        tick = stream.time_base
        # A cut Matroska file just ends; its head still says how long it was. Sound may last longer than video.
        missing = Fraction(container.duration or 0, av.time_base) - (int(stamps[-1]) + last_ticks) * tick
        is_alone = all(other.index == stream.index or other.disposition & Disposition.attached_pic
                       for other in container.streams)
        if container.format.name.startswith("matroska") and is_alone and missing > 1:
            raise UserError(f"{name} is cut off ({float(missing):.1f} s are missing at its end); "
                            "export or download it again.")
    with opened(path, name) as (container, stream):
        try:
            first, frame = next(decoded(container, stream, name), (None, None))
        except Damaged:
            raise UserError(_damaged_at(name, Fraction(0))) from None
        if frame is None:
            raise UserError(f"{name} has no frame that can be decoded; export or download it again.")
        shape = Look.of(frame, stream, name)
        width, height = shape.image(frame, "white").size
        reading = [*shape.words, *([look.FIELDS] if frame.interlaced_frame else []),
                   *([look.OTHER_STREAM] if stream.index != container.streams.video[0].index else [])]
    return Source(
        width=width,
        height=height,
        num_frames=len(stamps),
        seconds=(int(stamps[-1]) + last_ticks - first) * tick,
        last_seconds=last_ticks * tick,
        rounding=min(tick, MAX_ROUNDING),
        first=first * tick,
        reading=" ".join(reading),
    )


def has_alpha(source: Source) -> bool:
    """Whether a clip may be transparent somewhere."""
    return look.ALPHA in source.reading.split()


def remarks(source: Source) -> tuple[str, ...]:
    """Clauses for the notes about a clip or an animation."""
    found = [_REMARKS[word] for word in source.reading.split() if word in _REMARKS]
    if 0 < source.fps < _SLIDES:
        found.append(f"a slide show of {source.fps:.2g} fps: most of its frames repeat the one before, and that is "
                     "what is learned; use a clip that moves, or save its pictures as png.")
    return tuple(found)


def read(
    path: Path, name: str, source: Source, bucket: Bucket, start: int, fps: int, background: str = "white"
) -> np.ndarray:
    """The pixels a clip is trained on: pixels_FHW3 uint8, (bucket.frames, bucket.height, bucket.width, 3).

    Args:
        name: what messages call the file.
        source: the result of `probe`.
        start: the first frame, counted at `fps` frames a second.
        background: the colour under what is transparent.

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
    for shape, frame in windows.shown(timed, source, start, count, fps):
        yield shape.image(frame, background)


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


def _damaged_at(name: str, seconds: Fraction) -> str:
    return f"{name} is damaged at {float(max(seconds, 0)):.2f} s; export or download it again, or cut that part out."


Shaped = tuple[Look, av.VideoFrame]


def _timed(path: Path, name: str, source: Source, seconds: Fraction) -> Iterator[tuple[Fraction, Shaped]]:
    """(seconds after the first frame, frame and what is to be done to it) from a frame at or before `seconds` on."""
    lead = _BEFORE_FIELDS if look.FIELDS in source.reading.split() else 0
    reached, fault = None, None
    for step_back in (lead, 2, 10, None):
        is_found = False
        try:
            for time, shaped in _from(path, name, source, seconds, step_back):
                is_found = True
                if reached is None or time > reached:
                    yield time, shaped
                    reached = time
        except Damaged as damage:
            # right after a seek a frame may lack what it refers to, and be whole when more is decoded before it
            if damage.seconds == fault or step_back is None or seconds <= step_back:
                raise UserError(_damaged_at(name, damage.seconds - source.first)) from None
            fault, is_found = damage.seconds, False
        if is_found:
            return


def _from(
    path: Path, name: str, source: Source, seconds: Fraction, step_back: Fraction | int | None
) -> Iterator[tuple[Fraction, Shaped]]:
    """As `_timed`, sought to `step_back` seconds before (None: not sought); nothing where that leads too late."""
    with opened(path, name) as (container, stream):
        target = seconds - step_back if step_back is not None else Fraction(0)
        # In avi a frame's time follows only from all frames before it, so there is no seeking.
        if target > 0 and container.format.name != "avi":
            try:
                container.seek(math.floor((source.first + target) / stream.time_base), stream=stream)
            except av.FFmpegError:
                return  # a file that cannot be sought is read from its beginning
        shape, previous = None, None
        for stamp, frame in look.progressive(decoded(container, stream, name), stream.time_base):
            time = stamp * stream.time_base - source.first
            if shape is None and target > 0 and time > seconds:
                return  # the seek went too far; try again from further back
            if previous is not None and time < previous:
                raise UserError(_broken(name, f"they run backwards at {float(time):.2f} s"))
            shape, previous = shape or Look.of(frame, stream, name), time
            yield time, (shape, frame)
