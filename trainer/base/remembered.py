"""A cache of facts about files, valid while these do not change, so that unchanged files are not read again."""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from .database import Database
from .files import Stamp

SETTLED = 2.0
"""Seconds. A file changed less than this ago is not remembered: a second change might leave the same time behind."""

_ERRORS = "surrogatepass" if os.name == "nt" else "surrogateescape"

_TABLE = """CREATE TABLE IF NOT EXISTS known (
    name BLOB PRIMARY KEY, version TEXT, stamp TEXT, facts TEXT, crc32 INTEGER) WITHOUT ROWID"""
"""crc32 is that of the other columns: SQLite has no checksums, and may return wrong values from a damaged file."""


class Remembered:
    """Facts by name, valid while the file's Stamp and the version are the same.

    New facts are in memory until `save` writes them to an SQLite file. Threads may share the object, and processes the
    file; each adds what it found. A file that is missing, damaged or of another version costs nothing but time.

    Args:
        path: of the SQLite file; None keeps the facts in memory only.
        version: facts that were saved under another version are ignored.
    """

    def __init__(self, path: Path | None, version: str) -> None:
        self._database = Database(path, _TABLE)
        self._version = version
        self._new: dict[str, tuple[str, str]] = {}  # stamp and facts of what is not saved yet
        self._lock = threading.Lock()
        self._database.take_over("INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?, ?)", self._rows_of)

    def get(self, name: str, stamp: Stamp) -> dict | None:
        """The facts, or None if there are none for the file as it is now."""
        known = self._new.get(name)
        if known is None:
            key = _key(name)
            for *row, crc32 in self._database.rows(
                    "SELECT name, version, stamp, facts, crc32 FROM known WHERE name = ?", key):
                if (*row, crc32) == self._row(key, *row[2:]):
                    known = row[2:]
        return json.loads(known[1]) if known is not None and known[0] == _text(stamp) else None

    def put(self, name: str, stamp: Stamp, facts: dict, written_by_us: bool = False) -> None:
        """Remember facts about a file; values that JSON lacks, such as a Fraction, become text.

        Args:
            written_by_us: this program wrote the file and is done with it. Any other file may just be changing, and is
                remembered only when its last change is SETTLED seconds old.
        """
        if written_by_us or time.time() - max(stamp.modified, stamp.changed) / 1e9 > SETTLED:
            with self._lock:
                self._new[name] = _text(stamp), json.dumps(facts, default=str, separators=(",", ":"))

    def names(self) -> list[str]:
        """All names with facts, be they valid or outdated."""
        saved = self._database.rows("SELECT name FROM known WHERE version = ?", self._version)
        return sorted({name.decode(errors=_ERRORS) for (name,) in saved} | self._new.keys())

    def keep(self, names: set[str]) -> None:
        """Forget the facts of all other names."""
        with self._lock:
            self._new = {name: known for name, known in self._new.items() if name in names}
        kept = {_key(name) for name in names}
        gone = [row for row in self._database.rows("SELECT name FROM known") if row[0] not in kept]
        if gone:
            self._database.write(("DELETE FROM known WHERE name = ?", gone))

    def save(self) -> None:
        """Write the new facts and close the file; if the disk is full or read-only, they stay in memory."""
        with self._lock:
            rows = sorted(self._row(_key(name), *known) for name, known in self._new.items())
            if rows and self._database.write(("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", rows)):
                self._new.clear()
        self._database.close()

    def _row(self, name: bytes, stamp: str, facts: str) -> tuple:
        row = name, self._version, stamp, facts
        return *row, zlib.crc32(repr(row).encode())

    def _rows_of(self, content: object) -> Iterator[tuple]:
        """Rows of the JSON file of earlier versions: {"version": ..., "known": {name: [stamp, facts]}}."""
        known = content.get("known") if isinstance(content, dict) and content.get("version") == self._version else None
        for name, each in known.items() if isinstance(known, dict) else ():
            match each:
                case [[size, modified, changed], dict(facts)]:
                    yield self._row(_key(name), _text(Stamp(size, modified, changed)),
                                    json.dumps(facts, separators=(",", ":")))


def _key(name: str) -> bytes:
    """The name as bytes, which SQLite takes also where it is no text; as os.fsencode, but in any locale."""
    return name.encode(errors=_ERRORS)


def _text(stamp: Stamp) -> str:
    """The stamp as text, since a time in nanoseconds may be larger than SQLite's integers."""
    return f"{stamp.size} {stamp.modified} {stamp.changed}"
