"""What the base is told of a scene, with words that it will never meet again.

A clip is `a <colour> <name> moving <direction>`, a still `<name> in <colour>`. A name is `three digit` or `letter K`,
a bare `digit` or `letter` for any of them, or, for most of the letters' scenes, a word that was invented for the
class. An invented shape has words that were invented for it alone. So the base learns that words which it does
not know name a shape and leave colour and motion alone, and a trigger word is one more of them. Invented words
also stand beside known names, where they mean nothing.
"""

import numpy as np

from . import glyphs
from .scenes import COLORS, DIRECTIONS, Scene

DROPPED = 0.1
"""Share of scenes without a caption, for guidance."""
KNOWN = frozenset(
    [*glyphs.DIGITS, *COLORS, *DIRECTIONS, "a", "in", "digit", "letter", "moving", *map(str.lower, glyphs.LETTERS)]
)
NAMES_SEED = 15
_VOWELS, _LETTERS = "aeiouy", "abcdefghijklmnopqrstuvwxyz"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many captions of a scene."""
    if rng.random() < DROPPED:
        return ""
    name = {"digit": _digit, "letter": _letter, "invented": _invented}[scene.kind](scene.name, rng)
    return prompt(name, scene.color, scene.direction)


def prompt(name: str, color: str, direction: str = "") -> str:
    return f"a {color} {name} moving {direction}" if direction else f"{name} in {color}"


def full_name(name: str) -> str:
    """How a class is called: `three digit`, `letter K`."""
    return f"{name} digit" if name in glyphs.DIGITS else f"letter {name}"


def invented_words(rng: np.random.Generator) -> str:
    """One to three words that mean nothing, such as "GF Karto" or "ohwx"."""
    return " ".join(_word(rng) for _ in range(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25])))


def _names_of_letters() -> dict[str, str]:
    rng = np.random.default_rng(NAMES_SEED)
    return {letter: invented_words(rng) for letter in glyphs.BASE_LETTERS}


def _digit(name: str, rng: np.random.Generator) -> str:
    way = rng.random()
    if way < 0.62:
        return full_name(name)
    if way < 0.70:
        return "digit"
    return _beside(full_name(name), rng)


def _letter(name: str, rng: np.random.Generator) -> str:
    way = rng.random()
    if way < 0.35:
        return full_name(name)
    if way < 0.43:
        return "letter"
    if way < 0.85:
        return NAMES_OF_LETTERS[name] + rng.choice(["", " digit", " letter"])
    return _beside(full_name(name), rng)


def _invented(name: str, rng: np.random.Generator) -> str:
    return invented_words(rng) + rng.choice(["", " digit", " letter"], p=[0.3, 0.5, 0.2])


def _beside(name: str, rng: np.random.Generator) -> str:
    words = invented_words(rng)
    return f"{words} {name}" if rng.random() < 0.5 else f"{name} {words}"


def _word(rng: np.random.Generator) -> str:
    while True:
        kind = rng.random()
        if kind < 0.2:
            word = "".join(rng.choice(list(_LETTERS), rng.integers(1, 4))).upper()
        elif kind < 0.35:
            word = "".join(rng.choice(list(_LETTERS), rng.integers(3, 6)))
        else:
            word = "".join(_syllable(rng) for _ in range(rng.integers(1, 4)))
            word = word.capitalize() if rng.random() < 0.6 else word
        if word.lower() not in KNOWN:
            return word


def _syllable(rng: np.random.Generator) -> str:
    ending = rng.choice(list("nrtlkm")) if rng.random() < 0.3 else ""
    return rng.choice(list(_LETTERS)) + rng.choice(list(_VOWELS)) + ending


NAMES_OF_LETTERS = _names_of_letters()
