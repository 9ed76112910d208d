"""Frames of a clip beside each other, as one picture."""

from __future__ import annotations

import math

import numpy as np

from .pictures import fit

MAX_FRAMES = 6
"""Frames in a strip."""


def strip(clip_FHW3: np.ndarray, max_width: float = math.inf) -> np.ndarray:
    """Evenly chosen frames, the first and the last among them, from left to right: (H, W, 3) uint8.

    Args:
        max_width: of one frame in pixels; wider ones are scaled down.
    """
    num_frames, height, width = clip_FHW3.shape[:3]
    chosen = np.linspace(0, num_frames - 1, min(MAX_FRAMES, num_frames)).round().astype(int)
    scale = min(1, max_width / width)
    return np.concatenate([fit(clip_FHW3[i], round(height * scale), round(width * scale)) for i in chosen], axis=1)
