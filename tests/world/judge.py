"""An independent judge of videos of the small world: a support vector machine that names the shape of each frame.

It learns from drawings alone: all of scikit-learn's digits, the letters, and invented shapes as "other", so
that what is malformed need not pass for a digit. Needs scikit-learn.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import glyphs, scenes

SEED = 4
OTHER = "other"
INVENTED = 900
SIDE = 16
LEAST_MOTION = 6
"""Pixels that a shape must have gone between the first and the last frame."""


@dataclass(frozen=True, slots=True)
class Verdict:
    names: tuple[str, ...]
    """Of the shape in each frame."""
    color: str
    direction: str
    """Empty where nothing moved."""


class Judge:
    def __init__(self):
        from sklearn.datasets import load_digits
        from sklearn.svm import SVC

        rng = np.random.default_rng(SEED)
        shapes = glyphs.glyphs()
        digits = load_digits()
        known = [(glyphs.DIGITS[digit], image / 16) for digit, image in zip(digits.target, digits.images, strict=True)]
        known += [(name, shape) for name in glyphs.CLASSES for shape in shapes[name] for _ in range(3)]
        known += [(OTHER, scenes.invented(shapes, rng)) for _ in range(INVENTED)]
        inputs = [_input(_noisy(np.pad(scenes.coverage(shape), 16), rng)) for _, shape in known]
        self.classifier = SVC(C=10).fit(inputs, [name for name, _ in known])

    def __call__(self, video_FHW3: np.ndarray) -> Verdict:
        """What a video of 8-bit RGB shows."""
        ink_FHW = ((video_FHW3.max(-1).astype(np.float32) - scenes.BACKGROUND) / 240).clip(0, 1)
        names = self.classifier.predict([_input(ink_HW) for ink_HW in ink_FHW])
        centers = np.array([_center(ink_HW) for ink_HW in ink_FHW])
        return Verdict(tuple(map(str, names)), _color(video_FHW3, ink_FHW), _direction(centers[-1] - centers[0]))


def _noisy(ink_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (ink_HW * rng.uniform(0.85, 1.0) + rng.normal(0, 0.02, ink_HW.shape)).clip(0, 1)


def _center(ink_HW: np.ndarray) -> tuple[float, float]:
    """(right, down) of the middle of the ink, in pixels."""
    ink_HW = np.where(ink_HW > 0.3, ink_HW, 0) + 1e-6
    return (
        float((ink_HW.sum(0) * np.arange(ink_HW.shape[1])).sum() / ink_HW.sum()),
        float((ink_HW.sum(1) * np.arange(ink_HW.shape[0])).sum() / ink_HW.sum()),
    )


def _input(ink_HW: np.ndarray) -> np.ndarray:
    """The shape's surroundings, centered on its ink and made coarse, as a row of numbers."""
    right, down = _center(ink_HW)
    half = scenes.SHAPE / 2
    box = (right + 0.5 - half, down + 0.5 - half, right + 0.5 + half, down + 0.5 + half)
    image = Image.fromarray(np.pad(ink_HW, scenes.SHAPE).astype(np.float32))
    box = tuple(edge + scenes.SHAPE for edge in box)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box)).ravel()


def _color(video_FHW3: np.ndarray, ink_FHW: np.ndarray) -> str:
    paint = video_FHW3[ink_FHW > 0.5].astype(np.float32)
    if not len(paint):
        return ""
    mean = paint.mean(axis=0)
    return min(scenes.COLORS, key=lambda color: np.abs(np.array(scenes.COLORS[color]) - mean).sum())


def _direction(way: np.ndarray) -> str:
    if np.abs(way).max() < LEAST_MOTION:
        return ""
    return max(scenes.DIRECTIONS, key=lambda direction: float(way @ np.array(scenes.DIRECTIONS[direction])))
