"""Pictures (H, W, 3) uint8: scaled, centred, and with text."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_READABLE_WIDTH = 256
"""Pixels. Narrower pictures are scaled up, so that a label fits above them."""


def fit(picture_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture scaled to the largest size within height x width that keeps its proportions."""
    scale = min(height / picture_HW3.shape[0], width / picture_HW3.shape[1])
    if scale == 1:
        return picture_HW3
    # A whole number keeps every pixel a sharp square: what the model drew, not what a filter made of it.
    resample = Image.Resampling.NEAREST if scale.is_integer() else Image.Resampling.LANCZOS
    size = tuple(max(1, round(side * scale)) for side in (picture_HW3.shape[1], picture_HW3.shape[0]))
    return np.asarray(Image.fromarray(picture_HW3).resize(size, resample))


def centred(picture_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture in the middle of height x width black pixels; it must not be larger than these."""
    room_HW3 = np.zeros((height, width, 3), np.uint8)
    y, x = (height - picture_HW3.shape[0]) // 2, (width - picture_HW3.shape[1]) // 2
    room_HW3[y : y + picture_HW3.shape[0], x : x + picture_HW3.shape[1]] = picture_HW3
    return room_HW3


def label_bar(label: str, width: int) -> np.ndarray:
    """A dark bar of this width with the text in its middle, shortened where it is too long."""
    font_size = max(16, width // 28)
    font = ImageFont.load_default(size=font_size)
    text = " ".join(label.split())
    while text and font.getlength(text) > width - font_size:
        text = text.removesuffix("...")[:-1].rstrip() + "..." if len(text) > 3 else ""
    height = font_size * 2
    bar = Image.new("RGB", (width, height), (24, 24, 24))
    ImageDraw.Draw(bar).text((width / 2, height / 2), text, fill=(240, 240, 240), font=font, anchor="mm")
    return np.asarray(bar)
