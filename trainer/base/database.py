"""SQLite files used as caches: whatever is wrong with one loses only its content, and never raises an exception."""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where every drive has locks
    fcntl = None

WAIT = 5.0
"""Seconds to wait for a transaction of another process."""

_lockable: dict[Path, bool] = {}
"""By folder, whether its files can be locked, which is not so on some network drives."""

_trying = threading.Lock()


class Database:
    """One table in one file. Threads may share the object, and processes the file.

    The file is open from the first `rows` to the next `write` or `close`: opening it for each query takes many times as
    long as the query, and Windows does not delete a file that is open. There is no write-ahead log, since that does not
    work on network drives. On one without locks two processes that write at once may damage the file.

    Args:
        path: None for a database that is always empty.
        table: its CREATE TABLE IF NOT EXISTS statement. A table of another layout needs another name.
    """

    def __init__(self, path: Path | None, table: str) -> None:
        self._path = path
        self._table = table
        self._connection: sqlite3.Connection | None = None
        self._is_readable = True
        self._is_damaged = False
        self._lock = threading.Lock()

    def rows(self, query: str, *values: object) -> list[tuple]:
        """The rows of a SELECT; none if the file is missing, damaged, or locked for longer than WAIT."""
        with self._lock:
            try:
                if not self._is_readable or (self._connection is None and not self._open()):
                    return []
                return self._connection.execute(query, values).fetchall()
            except (OSError, sqlite3.Error) as error:
                self._is_readable = False  # until it is closed, so that further queries do not wait as well
                self._is_damaged = _is_damage(error)
                return []

    def write(self, *changes: tuple[str, Iterable[tuple]]) -> bool:
        """Run each statement with each of its rows, all in one transaction; a damaged file is replaced.

        Returns:
            Whether it was written; False if the disk is full or read-only, or another process holds the file.
        """
        if self._path is None:
            return False
        with self._lock:
            self._close()
            try:
                try:
                    self._run(changes)
                except sqlite3.Error as error:
                    if not _is_damage(error):
                        raise
                    self._is_damaged = True
                    self._run(changes)
            except (OSError, sqlite3.Error):
                return False
            return True

    def close(self) -> None:
        """Close the file; the next query opens it again."""
        with self._lock:
            self._close()

    def take_over(self, insert: str, rows_of: Callable[[object], Iterable[tuple]]) -> None:
        """Import the JSON file (same name, .json) that earlier versions used instead, and delete it.

        Args:
            insert: an INSERT OR IGNORE statement, so that rows that are in the database already stay.
            rows_of: makes the rows from the file's parsed content, which may be of any type.
        """
        if self._path is None:
            return
        old = self._path.with_suffix(".json")
        try:
            rows = list(rows_of(json.loads(old.read_bytes())))
        except OSError:  # there is none
            return
        except (ValueError, RecursionError):  # it is damaged
            rows = []
        if self.write((insert, rows)):
            with suppress(OSError):
                old.unlink()

    def _open(self) -> bool:
        if self._path is None or not self._path.exists():  # connecting would make an empty file
            return False
        self._connection = _connect(self._path)
        return True

    def _close(self) -> None:
        self._is_readable = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, changes: tuple[tuple[str, Iterable[tuple]], ...]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_damaged:
            # the journal first: SQLite would replay a journal that is left over into the new file
            for path in (self._path.with_name(f"{self._path.name}-journal"), self._path):
                path.unlink(missing_ok=True)
            self._is_damaged = False
        self._path.touch()
        with closing(_connect(self._path)) as connection, connection:
            connection.execute(self._table)
            for statement, rows in changes:
                connection.executemany(statement, rows)


def _connect(path: Path) -> sqlite3.Connection:
    """Open an existing file; on a drive without locks, without them: SQLite would wait for one, and give up."""
    query = "" if _has_locks(path) else "?nolock=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}{query}", WAIT, check_same_thread=False, uri=True)


def _has_locks(path: Path) -> bool:
    """Whether files in the folder of an existing file can be locked; tried once, since closing a file gives up all
    locks that this process has on it."""
    with _trying:
        if path.parent not in _lockable:
            _lockable[path.parent] = _can_be_locked(path)
        return _lockable[path.parent]


def _can_be_locked(path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)  # another program has locked it
    return True


def _is_damage(error: Exception) -> bool:
    """Whether the file is damaged: sqlite3 raises DatabaseError itself then, and a subclass for the disk or a lock."""
    return type(error) is sqlite3.DatabaseError
