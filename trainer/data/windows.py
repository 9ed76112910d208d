"""Which frames of a clip are trained on: pure arithmetic on times, in exact fractions of a second.

Clips are read at the frame rate `fps` of the model family: frame k of a window is what a player shows
(start + k) / fps seconds after the first frame. Frames are found by their timestamps and never by counting them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

RANDOM_WINDOWS = 8
"""Windows that mode "random" draws from a clip: each is one latent in the cache."""

Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True)
class Source:
    """What a clip's file holds."""

    width: int
    """As it is shown, after the rotation flag."""
    height: int
    num_frames: int
    seconds: Fraction
    """From the first frame's timestamp to the end of the last frame."""
    last_seconds: Fraction
    """How long the last frame is shown."""
    rounding: Fraction
    """Seconds; the file's timestamps are rounded to multiples of it."""
    first: Fraction = Fraction(0)
    """The first frame's timestamp."""
    is_animation: bool = False
    """Read with Pillow: an animated gif, webp or png."""
    reading: str = ""
    """Words for what is done to its frames that earlier versions did not do; part of the names of its cache files."""

    @property
    def fps(self) -> float:
        """Frames a second on average."""
        return float(round(self.num_frames / self.seconds, 3)) if self.seconds else 0.0

    def frames_at(self, fps: int) -> int:
        """Frames of the clip at so many per second; an end that is late only by a timestamp's rounding adds none."""
        return max(1, math.ceil((self.seconds - self.rounding) * fps))


@dataclass(frozen=True, slots=True)
class Cut:
    """A sample cut from a clip: `frames` frames from a start; visits take several starts in turn."""

    frames: int
    starts: tuple[int, ...]
    """In frames at the family's rate."""


def cut(mode: str, num_frames: int, frame_buckets: Sequence[int], digest: str) -> list[Cut]:
    """The samples of a clip of num_frames; none if it is shorter than each frame bucket.

    The longest bucket that fits is taken. The last frame may be shown for one frame more, so that a clip is not lost
    because it is one frame short of a bucket.

    Args:
        mode: one of EXTRACTION_MODES in settings/data.py.
        num_frames: at the family's fps.
        frame_buckets: the allowed numbers of frames; 1 is a picture and never a clip.
        digest: of the file; the random windows are a function of it.
    """
    frames = longest(num_frames, frame_buckets)
    if frames is None:
        return []
    last_start = max(0, num_frames - frames)
    if mode == "middle":
        return [Cut(frames, (last_start // 2,))]
    if mode == "uniform":
        count = math.ceil(num_frames / frames)
        return [Cut(frames, (round(Fraction(last_start * i, max(1, count - 1))),)) for i in range(count)]
    if mode == "chunks":
        return _chunks(num_frames, frame_buckets)
    if mode == "random":
        starts = random.Random(digest).sample(range(last_start + 1), min(RANDOM_WINDOWS, last_start + 1))
        return [Cut(frames, tuple(starts))]
    return [Cut(frames, (0,))]


def longest(num_frames: int, frame_buckets: Sequence[int]) -> int | None:
    """The longest clip bucket that num_frames fill, the last of them shown at most once more; None if there is none."""
    return max((frames for frames in frame_buckets if 1 < frames <= num_frames + 1), default=None)


def _chunks(num_frames: int, frame_buckets: Sequence[int]) -> list[Cut]:
    cuts, start = [], 0
    while (frames := longest(num_frames - start, frame_buckets)) is not None:
        cuts.append(Cut(frames, (start,)))
        start += frames
    return cuts


def shown(
    timed: Iterable[tuple[Fraction, Frame]], source: Source, start: int, count: int, fps: int
) -> Iterator[Frame]:
    """The frames that a player shows at start/fps, (start+1)/fps ... seconds: each the last whose time has come.

    Ends early where the clip does: the last frame is shown for its own duration and one frame more.

    Args:
        timed: (seconds after the first frame, frame), ascending, from a frame at or before start/fps seconds.
    """
    wanted, end = start, start + count
    current, since = None, Fraction(0)
    for seconds, frame in timed:
        while wanted < end and current is not None and Fraction(wanted, fps) + source.rounding / 2 < seconds:
            yield current
            wanted += 1
        if wanted == end:
            return
        current, since = frame, seconds
    held_until = since + source.last_seconds + Fraction(1, fps) + source.rounding
    while wanted < end and current is not None and Fraction(wanted, fps) <= held_until:
        yield current
        wanted += 1
