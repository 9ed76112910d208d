"""Reads what of a run's JSON files has the type it should have, and says what is wrong with the rest.

A power cut, a failing disk or an editor may leave anything in them, and one such run must not hide the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ..base.files import read_bytes

MAX_REMEMBERED = 4096
"""JSON files, and folders, whose content is kept in memory."""

MOST = 1 << 53
"""The largest whole number that the page takes."""


class Reading:
    """The files of one run; `faults` says, each in a sentence, what of them is unreadable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[str] = []

    def object(self, name: str) -> Mapping:
        """The object in one of the files; empty where there is none."""
        try:
            content = parsed(self._folder / name)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            return self.blame(name, getattr(error, "strerror", None) or "it is not JSON", {})
        return content if isinstance(content, dict) else self.blame(name, "it holds no JSON object", {})

    def text(self, name: str, found: Mapping, key: str, default: str) -> str:
        """A text of an object of the file `name`."""
        value = found.get(key, default)
        return value if isinstance(value, str) else self.blame(name, f"{key} is {_short(value)}", default)

    def number(self, name: str, found: Mapping, key: str, default: float = 0) -> float:
        """A finite number of an object of the file `name`."""
        value = found.get(key, default)
        return value if is_number(value) else self.blame(name, f"{key} is {_short(value)}", default)

    def part(self, name: str, found: Mapping, key: str) -> Mapping:
        """An object in an object of the file `name`."""
        value = found.get(key, {})
        return value if isinstance(value, dict) else self.blame(name, f"{key} is {_short(value)}", {})

    def check_whole(self, name: str) -> bool:
        """Whether a file begins and ends as an object does: those of checkpoints are too many to be parsed."""
        with suppress(OSError), (self._folder / name).open("rb") as file:
            if file.read(1) == b"{" and file.seek(-1, 2) and file.read(1) == b"}":
                return True
        return self.blame(name, "it is not JSON", False)

    def blame(self, name: str, what: str, default=None):
        """Add the fault that a file is unreadable, and why; returns the default."""
        self.faults.append(f"{name} is unreadable ({what}); restore it, or delete the run.")
        return default


def parsed(path: Path) -> object:
    """What a JSON file holds. Raises OSError, or ValueError if it is not JSON."""
    content = _parsed(path, version(path))
    if isinstance(content, ValueError):
        raise content
    return content


@lru_cache(MAX_REMEMBERED)
def _parsed(path: Path, _known_by: tuple) -> object:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))  # remembered, too


def version(path: Path) -> tuple[int, ...]:
    """Differs when a file's content has changed, or when entries of a folder were added or removed."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no larger than the page takes."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST


def is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return is_number(value) and isinstance(value, int) and value >= 0


def texts(found: object) -> tuple[str, ...]:
    """The texts in a list."""
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def event(line: bytes) -> dict | None:
    """The event in a line of the log; None for one that is damaged."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str) and "step" in found and all(
                key not in found or is_whole(found[key]) for key, is_whole in _KINDS.items()):
            return found
    return None


def _is_loss(value: object) -> bool:
    return value is None or is_number(value)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_KINDS = {"step": is_count, "total_steps": is_count, "steps_per_epoch": is_count, "loss": _is_loss,
          "base_loss": _is_loss, "learned": _is_loss, "learning_rate": is_number,
          "reason": lambda value: isinstance(value, str), "name": lambda value: isinstance(value, str),
          "files": _is_names}
"""What each value of an event that is shown must be."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


