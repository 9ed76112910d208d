"""Draws tests/world/nines: twelve stills of the one digit that the small base model never saw.

The base model knows the digits 0 to 8 of scikit-learn's digits, drawn on 64 x 64 pixels as here.
Needs numpy, Pillow and scikit-learn (which nothing else here needs):

    python tests/world/make_nines.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "nines"
TRIGGER_WORD = "GF Carty Chan"

# Rows of the data set: nines with a clear loop, each by another hand or of another shape.
ROWS = (220, 251, 254, 405, 455, 478, 514, 535, 608, 621, 849, 924)
COLORS = {
    "red": (252, 38, 31),
    "green": (31, 242, 43),
    "blue": (54, 84, 255),
    "yellow": (255, 242, 31),
    "purple": (216, 50, 255),
    "white": (255, 255, 255),
}
# Left or top edge of the digit. The base model knows only these: whole pixels of the VAE's latent.
EDGES = (8, 16, 24)
BACKGROUND = 15
CANVAS = 64
DIGIT = 32


def main() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    FOLDER.mkdir(exist_ok=True)
    for number, row in enumerate(ROWS, start=1):
        if digits.target[row] != 9:
            shown = digits.target[row]
            raise ValueError(f"Row {row} shows a {shown}, not a 9; use scikit-learn's own digits.")
        color = tuple(COLORS)[(number - 1) % len(COLORS)]
        left, top = position(number)
        still = draw(coverage(digits.images[row]), COLORS[color], left, top)
        Image.fromarray(still).save(FOLDER / f"{number:02d}.png", optimize=True)
        (FOLDER / f"{number:02d}.txt").write_text(f"{TRIGGER_WORD} digit in {color}\n", encoding="utf-8")


def position(number: int) -> tuple[int, int]:
    """Where the digit stands: all nine places, then three of them again, never twice in one colour."""
    place = (number - 1) * 4 % 9
    return EDGES[place % 3], EDGES[place // 3]


def coverage(image: np.ndarray) -> np.ndarray:
    """How much ink each pixel of the enlarged digit has, 0 to 1, with the base model's firm edges."""
    small = Image.fromarray((image / 16).astype(np.float32))
    large = np.asarray(small.resize((DIGIT, DIGIT), Image.Resampling.LANCZOS))
    return ((large - 0.2) / 0.6).clip(0, 1)


def draw(ink: np.ndarray, color: tuple[int, int, int], left: int, top: int) -> np.ndarray:
    """The digit in one colour on the base model's dark background, as 8-bit RGB."""
    still = np.full((CANVAS, CANVAS, 3), BACKGROUND, dtype=np.float32)
    box = still[top : top + DIGIT, left : left + DIGIT]
    box += ink[..., None] * (np.array(color, dtype=np.float32) - BACKGROUND)
    return still.round().astype(np.uint8)


if __name__ == "__main__":
    main()
