"""Settings of other trainers as ours: what is common to reading them. What has no counterpart here is named.

`diffusion_pipe` and `musubi` know one trainer each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from .options import Sections

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Foreign:
    """The settings of another trainer, translated."""

    sections: Sections
    notes: tuple[str, ...]
    """What could not be, or means something else here: sentences."""


@dataclass(slots=True)
class Table:
    """A table of another trainer's settings, each key of which is read once; what is never read is named at the end.

    Args:
        title: begins sentences, such as "dataset.toml".
        base: further values for keys that the table itself does not have.
    """

    title: str
    values: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is thereby read."""
        self._read.add(key)
        return self.values.get(key, self.base.get(key, default))

    def number(self, key: str, default: float) -> float:
        """A number.

        Raises:
            UserError: it is something else.
        """
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.title}: {key} is {value!r}; give a number.")
        return value

    def whole(self, key: str, default: int) -> int:
        """A whole number, rounded where it is none, with a note."""
        value = self.number(key, default)
        if value != round(value):
            self.note(f"{key} is {value:g}, and here {max(1, round(value))}, a whole number")
        return max(0, 1 if 0 < value < 1 else round(value))

    def pass_over(self, *keys: str) -> None:
        """Read keys that need no counterpart, since what they ask for is always so here."""
        self._read.update(keys)

    def without(self, key: str, why: str) -> None:
        """Name a key that has no counterpart, where it is there."""
        value = self.take(key)
        if value not in (None, False, 0, ""):
            self.note(f"{key} = {_short(value)} has no counterpart: {why}")

    def note(self, sentence: str) -> None:
        """A sentence without its period, about this table."""
        self.notes.append(f"{self.title}: {sentence}.")

    def end(self) -> list[str]:
        """All notes, with one for each key that was not read."""
        for key in self.values:
            if key not in self._read:
                self.note(f"{key} = {_short(self.values[key])} has no counterpart here and is left out")
        return self.notes


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the TOML file.") from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML ({error}); correct it.") from None


def beside(path: str, file: Path) -> Path:
    """A path that a file names: other trainers look from the folder they are started in, and so do we, first."""
    given = Path(path).expanduser()
    found = next((each for each in (given, file.parent / given, file.parent.parent / given) if each.exists()), given)
    return found.absolute()


def side(resolution: Any) -> int:
    """The side of a square of as many pixels as a resolution has, which is such a side or [width, height].

    Raises:
        UserError: it is something else.
    """
    if isinstance(resolution, (int, float)) and not isinstance(resolution, bool):
        return round(resolution)
    if isinstance(resolution, (list, tuple)) and len(resolution) == 2:
        return round(math.sqrt(math.prod(resolution)))
    raise UserError(f"resolution is {resolution!r}; give a side in pixels, or [width, height].")


def frames(counts: Any) -> str:
    """Frame counts as frame_buckets has them: each the next lower 4n+1, with 1 among them."""
    return ", ".join(map(str, sorted({1, *(4 * ((int(count) - 1) // 4) + 1 for count in counts if int(count) > 0)})))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
