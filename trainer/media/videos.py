"""Writes mp4 files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..base.files import replacing
from ..base.refusals import in_a_sentence

BT709 = 1
"""The number of this colour standard in H.264. Players disagree on the colours of a file that names no standard."""


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames (H, W, 3) uint8 of even size as H.264; a single frame is shown for one second.

    Frames are taken one at a time, so a long video needs no more memory than a short one. The file appears under its
    name only when it is complete.

    Raises:
        ValueError: fps is not a finite number above 0.
        UserError: the file cannot be written.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"Compare Videos: fps is {fps}; give a number above 0, such as 16 for Wan2.1.")
    path = Path(path)
    with in_a_sentence(f"{path.name} cannot be written", path.parent), replacing(path) as unfinished:
        _encode(unfinished, frames, Fraction(fps).limit_denominator(1001))


def _encode(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "17"})
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        num_frames = 0
        for frame_HW3 in frames:
            if num_frames == 0:
                stream.height, stream.width = frame_HW3.shape[:2]
            container.mux(stream.encode(_video_frame(frame_HW3)))
            num_frames += 1
        if num_frames == 1:
            for _ in range(round(rate) - 1):
                container.mux(stream.encode(_video_frame(frame_HW3)))
        container.mux(stream.encode())


def _video_frame(frame_HW3: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709")
