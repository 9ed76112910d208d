"""The shapes of the small world: 8 x 8 pixels each, in the sheet `glyphs.png`, one row of twelve for each class.

Handwritten digits are scikit-learn's (Alpaydin and Kaynak, UCI, CC BY 4.0), the twelve of each class that are most
like its mean, or in the case of the ones most like one that is clear. Letters are drawn in the twelve faces of
DejaVu (a free licence; matplotlib carries the files) and made as coarse as the digits, so that all classes are of one
kind. Letters that look like a digit (B, D, G, I, O, P, Q, S, Y, Z) are left out.

`python tests/world/glyphs.py` draws the sheet again; it needs scikit-learn and matplotlib, which reading does not.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHEET = Path(__file__).parent / "glyphs.png"
SIZE = 8
EXEMPLARS = 12
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("ACEFHJKLMNRTUVWX")
CLASSES = DIGITS + LETTERS
HELD_OUT = ("nine", "H", "K", "R", "X")
"""The base model never sees these: a LoRA may teach them."""
BASE_DIGITS = tuple(name for name in DIGITS if name not in HELD_OUT)
BASE_LETTERS = tuple(name for name in LETTERS if name not in HELD_OUT)
BASE = BASE_DIGITS + BASE_LETTERS
CLEAR_ONE = 1436
"""The row of a one with a flag: the mean of all ones is a blob."""
FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)


def glyphs() -> dict[str, np.ndarray]:
    """Every class with its shapes (12, 8, 8), ink from 0 to 1."""
    sheet = np.asarray(Image.open(SHEET), dtype=np.float32) / 255
    tiles = sheet.reshape(len(CLASSES), SIZE, EXEMPLARS, SIZE).swapaxes(1, 2)
    return dict(zip(CLASSES, tiles, strict=True))


def main() -> None:
    tiles = np.stack([*_digits(), *(_letter(letter) for letter in LETTERS)])
    sheet = tiles.swapaxes(1, 2).reshape(len(CLASSES) * SIZE, EXEMPLARS * SIZE)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(SHEET, optimize=True)


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = []
    for digit in range(10):
        images = digits.images[digits.target == digit] / 16
        flat = images.reshape(len(images), -1)
        model = digits.images[CLEAR_ONE].ravel() if digit == 1 else flat.mean(axis=0)
        likeness = flat @ model / np.linalg.norm(flat, axis=1)
        chosen.append(images[np.argsort(-likeness, kind="stable")[:EXEMPLARS]])
    return np.stack(chosen)


def _letter(letter: str) -> np.ndarray:
    from importlib.util import find_spec

    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    return np.stack([_drawn(letter, ImageFont.truetype(str(folder / face), 200)) for face in FACES])


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    # The thin faces would be grey when they are this small.
    stroke = 0 if "Bold" in font.getname()[1] else 8
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    width, height = right - left, bottom - top
    # As high as the digits, which fill all eight rows, and no wider than seven columns.
    side = max(height, round(width * SIZE / 7))
    large = Image.new("L", (side, side))
    ImageDraw.Draw(large).text(
        ((side - width) / 2 - left, (side - height) / 2 - top), letter, fill=255, font=font, stroke_width=stroke
    )
    small = np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    return small / small.max()


if __name__ == "__main__":
    main()
