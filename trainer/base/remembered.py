"""What was found out about files, for as long as they do not change: a second look costs no reading."""

from __future__ import annotations

import json
import time
from dataclasses import astuple
from pathlib import Path

from .files import Stamp, replacing

SETTLED = 2.0
"""Seconds. A file changed less than this ago is not remembered: a second change might leave the same time behind."""


class Remembered:
    """Facts by name, valid while the file's Stamp is the same; kept in one JSON file, or only in memory.

    Loses nothing but time when that file is missing, damaged or of another version.
    """

    def __init__(self, path: Path | None, version: str) -> None:
        self._path = path
        self._version = version
        self._known = self._load()
        self._changed = False

    def get(self, name: str, stamp: Stamp) -> dict | None:
        """The facts, or None if there are none for the file as it is now."""
        known = self._known.get(name)
        return known[1] if known and known[0] == list(astuple(stamp)) else None

    def put(self, name: str, stamp: Stamp, facts: dict, is_ours: bool = False) -> None:
        """Remember JSON-able facts (fractions are written as text) of a file that nobody `is_ours` may be writing."""
        if is_ours or time.time() - max(stamp.modified, stamp.changed) / 1e9 > SETTLED:
            self._known[name] = [list(astuple(stamp)), facts]
            self._changed = True

    def names(self) -> list[str]:
        """All that something is known of."""
        return list(self._known)

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        gone = self._known.keys() - names
        for name in gone:
            del self._known[name]
        self._changed = self._changed or bool(gone)

    def save(self) -> None:
        """Write the file if there is something new; a full or read-only disk costs time later and nothing else."""
        if not self._changed or self._path is None:
            return
        content = {"version": self._version, "known": self._known}
        try:
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps(content, default=str, separators=(",", ":")), encoding="utf-8")
        except OSError:
            return
        self._changed = False

    def _load(self) -> dict[str, list]:
        try:
            content = json.loads(self._path.read_bytes()) if self._path else {}
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or content.get("version") != self._version:
            return {}
        known = content.get("known")
        if not isinstance(known, dict):
            return {}
        return {name: each for name, each in known.items()
                if isinstance(each, list) and len(each) == 2 and isinstance(each[1], dict)}
