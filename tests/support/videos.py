"""Smooth clips, and what is in a video file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def moving_clip(frames: int, height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """(F, H, W, 3) in 0..1: smooth, which a codec keeps well, and different for every phase and frame."""
    time, y, x = np.ogrid[0:frames, 0:height, 0:width]
    waves = [0.5 + 0.4 * np.sin(phase + 0.3 * time + k * x / width * 5 + y / height * 4) for k in (1, 2, 3)]
    return np.stack(waves, axis=-1).astype(np.float32)


def read_back(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    """The frames (F, H, W, 3) uint8 of a file of ours, and its stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # PyAV before 17 does not look at the standard that the file names
        frames = [frame.reformat(format="rgb24", src_colorspace="ITU709", dst_colorspace="DEFAULT").to_ndarray()
                  for frame in container.decode(stream)]
        return np.stack(frames), stream
