"""A disk that is full from some write on, for all that lies in one folder: what is written last is half there.

A write is what makes a file or folder, gives it content or another name, or syncs it, by Python, SQLite, safetensors or
FFmpeg.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from safetensors import SafetensorError

NO_SPACE = "No space left on device"

_open = builtins.open


class Disk:
    """Counts the writes below `root`; from number `full_from` on, counted from 1, each is refused."""

    def __init__(self, root: Path, full_from: int | None) -> None:
        self.root = os.path.realpath(root)
        self.full_from = full_from
        self.count = 0
        self._lock = threading.Lock()

    def is_full(self, path: object) -> bool:
        """Count a write, and tell whether it is refused."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not os.path.abspath(os.fsdecode(path)).startswith(self.root):
            return False
        with self._lock:
            self.count += 1
            return self.full_from is not None and self.count >= self.full_from

    def check(self, path: object) -> None:
        """Count a write. Raises OSError if the disk is full."""
        if self.is_full(path):
            raise OSError(errno.ENOSPC, NO_SPACE, os.fspath(path) if not isinstance(path, int) else None)


@contextmanager
def full_from(number: int | None, root: Path) -> Iterator[Disk]:
    """The disk of this folder, which is full from a write on, or never; room is made by full_from = None."""
    disk, patch = Disk(root, number), pytest.MonkeyPatch()
    try:
        patch.setattr(builtins, "open", _opening(disk))
        patch.setattr(io, "open", builtins.open)
        for name, place in (("mkdir", 0), ("fsync", 0), ("replace", 1), ("rename", 1)):
            patch.setattr(os, name, _checking(disk, getattr(os, name), place))
        patch.setattr(os, "open", _opening_by_number(disk, os.open))
        patch.setattr(av, "open", _filming(disk, av.open))
        patch.setattr(sqlite3, "connect", _connecting(disk, sqlite3.connect))
        for module in _users_of_safetensors():
            patch.setattr(module, "save_file", _saving(disk, module.save_file))
        yield disk
    finally:
        patch.undo()


def _users_of_safetensors() -> list:
    from wantune.trainer.encoded import store
    from wantune.trainer.lora import file
    from wantune.trainer.runs import state

    return [state, store, file]


def _checking(disk: Disk, function, place: int):
    def check(*arguments, **options):
        disk.check(arguments[place])
        return function(*arguments, **options)
    return check


def _opening_by_number(disk: Disk, function):
    def opening(path, flags, *arguments, **options):
        if flags & os.O_CREAT and not os.path.lexists(path):
            disk.check(path)
        return function(path, flags, *arguments, **options)
    return opening


def _opening(disk: Disk):
    class Raw(io.FileIO):
        def write(self, data) -> int:
            if disk.is_full(self.name):
                super().write(memoryview(data)[:len(data) // 2])
                raise OSError(errno.ENOSPC, NO_SPACE)
            return super().write(data)

    def opening(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        is_ours = not isinstance(file, int) and os.path.abspath(os.fsdecode(file)).startswith(disk.root)
        if not is_ours or mode.strip("bt") == "r":
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not os.path.lexists(file):
            disk.check(file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
    return opening


def _saving(disk: Disk, function):
    def save_file(tensors, path, metadata=None):
        is_full = disk.is_full(path)
        function(tensors, path, metadata)
        if is_full:
            os.truncate(path, os.path.getsize(path) // 2)
            raise SafetensorError(f"Error while serializing: I/O error: {NO_SPACE} (os error {errno.ENOSPC})")
    return save_file


def _filming(disk: Disk, function):
    def opening(file, mode=None, **options):
        if mode == "w" and disk.is_full(file):
            _open(file, "wb").close()
            raise av.error.OSError(errno.ENOSPC, NO_SPACE, str(file))
        return function(file, mode, **options)
    return opening


def _connecting(disk: Disk, function):
    def connect(path, *arguments, **options):
        class Connection(sqlite3.Connection):
            def execute(self, statement, *values):
                self._check(statement)
                return super().execute(statement, *values)

            def executemany(self, statement, rows):
                self._check(statement)
                return super().executemany(statement, rows)

            @staticmethod
            def _check(statement: str) -> None:
                if not statement.startswith("SELECT") and disk.is_full(path):
                    raise sqlite3.OperationalError("database or disk is full")

        return function(path, *arguments, factory=Connection, **options)
    return connect
