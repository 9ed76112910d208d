"""What the small world shows: one coloured shape on a dark ground, still or moving.

Everything stands on the transformer's own grid. A shape is 32 pixels wide, two of its patches of 16 pixels, and stands
in the middle; a clip of 9 frames moves it from there by 2 pixels a frame: one pixel of the latent for each frame of the
latent, and one patch in all. It has one place since nothing tells the model which of several is meant: at the first
steps of the sampler it would draw the shape in all of them.
Later frames are then the first one moved by whole pixels of the latent, which attention can copy. That makes a
video of one shape, and it carries a concept from stills to every frame of a video.

A scene shows a digit, a letter, or an invented shape that no class has and that is drawn once only. Of the last the
base learns to keep any shape, not just those that it has a name for, the same in every frame.
"""

from dataclasses import dataclass

import numpy as np

from . import glyphs

CANVAS, SHAPE, PATCH = 64, 32, 16
FRAMES, STEP = 9, 2
"""Frames of a clip, and pixels that the shape moves from one to the next."""
BACKGROUND = 15
COLORS = {
    "red": (252, 38, 31),
    "green": (31, 242, 43),
    "blue": (54, 84, 255),
    "yellow": (255, 242, 31),
    "purple": (216, 50, 255),
    "white": (255, 255, 255),
}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
MIDDLE = (16, 16)
"""Left and top edge of a shape where it stands or starts."""
SHARES = {"digit": 0.55, "letter": 0.22, "invented": 0.23}
"""How often the base is shown what."""
TOO_LIKE_A_NINE = 0.82
"""Cosine of an invented shape and a nine from which on the base does not see it."""


@dataclass(frozen=True, slots=True)
class Scene:
    kind: str
    """A key of SHARES."""
    name: str
    """Of the class, empty for an invented shape."""
    color: str
    direction: str
    """Empty where nothing moves."""
    glyph_88: np.ndarray
    edges: tuple[tuple[int, int], ...]
    """Left and top of the shape for each frame, in pixels."""


def coverage(glyph_88: np.ndarray) -> np.ndarray:
    """Ink of each pixel of the enlarged shape (32, 32), 0 to 1, with firm edges."""
    from PIL import Image

    small = Image.fromarray(glyph_88.astype(np.float32))
    large = np.asarray(small.resize((SHAPE, SHAPE), Image.Resampling.LANCZOS))
    return ((large - 0.2) / 0.6).clip(0, 1)


def draw(scene: Scene) -> np.ndarray:
    """The frames of a scene, (frames, 64, 64, 3), 8-bit RGB."""
    frames = np.full((len(scene.edges), CANVAS, CANVAS, 3), BACKGROUND, dtype=np.float32)
    paint = coverage(scene.glyph_88)[..., None] * (np.array(COLORS[scene.color], dtype=np.float32) - BACKGROUND)
    for frame, (left, top) in zip(frames, scene.edges, strict=True):
        frame[top : top + SHAPE, left : left + SHAPE] += paint
    return frames.round().astype(np.uint8)


def way(direction: str) -> tuple[tuple[int, int], ...]:
    """Left and top of the shape for each frame: one where it stands, nine where it moves in a direction."""
    left, top = MIDDLE
    right, down = DIRECTIONS.get(direction, (0, 0))
    gone = range(0, STEP * FRAMES, STEP) if direction else (0,)
    return tuple((left + right * pixels, top + down * pixels) for pixels in gone)


def random_scene(shapes: dict[str, np.ndarray], moves: bool, rng: np.random.Generator) -> Scene:
    """A scene such as the base is trained with; `shapes` are those of glyphs.glyphs()."""
    kind = rng.choice(list(SHARES), p=list(SHARES.values()))
    if kind == "invented":
        name, glyph_88 = "", invented(shapes, rng)
    else:
        name = rng.choice(glyphs.BASE_DIGITS if kind == "digit" else glyphs.BASE_LETTERS)
        glyph_88 = shapes[name][rng.integers(glyphs.EXEMPLARS)]
    color = rng.choice(list(COLORS))
    direction = rng.choice(list(DIRECTIONS)) if moves else ""
    return Scene(str(kind), str(name), str(color), str(direction), glyph_88, way(str(direction)))


def invented(shapes: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A shape (8, 8) of halves of two known ones, turned or mirrored; never one that could pass for a nine."""
    while True:
        first, second = (_turned(_any_known(shapes, rng), rng) for _ in range(2))
        share = rng.choice([0, 3, 4, 5])
        glyph_88 = np.concatenate([first[: 8 - share], second[8 - share :]])
        if likeness_to_nine(glyph_88, shapes) < TOO_LIKE_A_NINE:
            return glyph_88


def likeness_to_nine(glyph_88: np.ndarray, shapes: dict[str, np.ndarray]) -> float:
    """The greatest cosine of a shape and the nines."""
    nines = shapes["nine"].reshape(-1, 64)
    flat = glyph_88.ravel()
    return float((nines @ flat / np.linalg.norm(nines, axis=1)).max() / np.linalg.norm(flat))


def _any_known(shapes: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return shapes[rng.choice(glyphs.BASE)][rng.integers(glyphs.EXEMPLARS)]


def _turned(glyph_88: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = np.rot90(glyph_88, rng.integers(4))
    return turned[:, ::-1] if rng.random() < 0.5 else turned
