"""Two clips next to each other, each under its name.

Frames are made one at a time, so a long clip needs no more memory than a short one.

Shape legend: F frames, H height, W width, 3 colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .pictures import MIN_READABLE_WIDTH, centred, fit, label_bar


@dataclass(frozen=True, slots=True)
class Panels:
    """Two clips brought to one size and one length, which is what makes them comparable frame by frame."""

    clips: tuple
    """Arrays or tensors in main memory, each (F, H, W, 3): 0..1 floats or 0..255 uint8."""

    @property
    def frames(self) -> int:
        """Of the longer clip; the shorter one holds its last frame."""
        return max(len(clip) for clip in self.clips)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a panel: even, because H.264 stores colour for squares of 2x2 pixels."""
        return tuple(side + side % 2 for side in self._inner)

    def labels(self, names: tuple[str, str]) -> tuple[str, str]:
        """The names, with the number of frames where the clips differ in it."""
        lengths = [len(clip) for clip in self.clips]
        if lengths[0] == lengths[1]:
            return names
        first, second = (f"{name} ({length} frames)" for name, length in zip(names, lengths, strict=True))
        return first, second

    def of(self, side: int) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8 of one clip, 0 or 1, fitted uncropped on black.

        Raises:
            ValueError: a frame holds NaN or infinity.
        """
        clip, name = self.clips[side], ("base", "tuned")[side]
        for index in range(self.frames):
            picture_HW3 = _picture(clip, min(index, len(clip) - 1), name)
            yield centred(fit(picture_HW3, *self._inner), *self.size)

    @property
    def _inner(self) -> tuple[int, int]:
        height, width = (max(clip.shape[axis] for clip in self.clips) for axis in (1, 2))
        factor = math.ceil(MIN_READABLE_WIDTH / width)
        return height * factor, width * factor


def panels(base_FHW3, tuned_FHW3) -> Panels:
    """Both clips as they are shown. Raises ValueError for what is no clip."""
    clips = (base_FHW3, tuned_FHW3)
    for clip, name in zip(clips, ("base", "tuned"), strict=True):
        _check_clip(clip, name)
    return Panels(clips)


def side_by_side(base_FHW3, tuned_FHW3, labels: tuple[str, str]) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8 with `base` on the left, `tuned` on the right and a label above each.

    Both halves have the size of the larger clip; a smaller one is fitted into it, uncropped, on black. A shorter clip
    holds its last frame.

    Raises:
        ValueError: at once for what is no clip, and at a frame that holds NaN or infinity.
    """
    return _frames(panels(base_FHW3, tuned_FHW3), labels)


def _frames(shown: Panels, labels: tuple[str, str]) -> Iterator[np.ndarray]:
    bars_HW3 = np.concatenate([label_bar(label, shown.size[1]) for label in shown.labels(labels)], axis=1)
    for pictures in zip(shown.of(0), shown.of(1), strict=True):
        yield np.concatenate([bars_HW3, np.concatenate(pictures, axis=1)])


def _check_clip(clip, name: str) -> None:
    shape = tuple(getattr(clip, "shape", ()))
    if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape:
        got = f"the shape {shape}" if shape else f"a {type(clip).__name__}"
        raise ValueError(
            f"Compare Videos: '{name}' must be pictures of the shape (frames, height, width, 3) but is "
            f"{got}; connect the IMAGE output of VAE Decode."
        )


def _picture(clip, index: int, name: str) -> np.ndarray:
    picture_HW3 = np.asarray(clip[index])[..., :3]
    if picture_HW3.dtype == np.uint8:
        return picture_HW3
    if not np.isfinite(picture_HW3).all():
        raise ValueError(
            f"Compare Videos: frame {index + 1} of '{name}' holds values that are not numbers (NaN or "
            "infinity); the sampler or the VAE overflowed, so try the VAE in fp32 or a LoRA of fewer steps."
        )
    return np.rint(np.clip(picture_HW3, 0, 1) * 255.0).astype(np.uint8)
