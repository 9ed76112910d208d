"""Windows' rules about files, on Linux, for all that lies in one folder.

- What this process has open or mapped is neither renamed, replaced nor deleted, nor is a folder that holds such a file.
- A folder is never replaced, and `os.rename` replaces nothing.
- Names that differ in case alone are the same; devices (con, nul), <>:"|?* and a trailing dot or space make no names.
- A file that is mapped is not emptied; a file that is open for reading alone is not synced.
- Text is written with \\r\\n, and without an encoding in cp1252.

What native code does (SQLite, FFmpeg, safetensors) is not stopped, but what it holds open is seen.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BUSY, DENIED, MAPPED, BAD_NAME = 32, 5, 1224, 123
"""Windows' errors: a sharing violation, access denied, a file that is mapped, a name that is none."""

_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])( *\..*)?", re.IGNORECASE)
_BAD = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$')

_REAL = {name: getattr(os, name) for name in (
    "stat", "lstat", "open", "mkdir", "listdir", "scandir", "replace", "rename", "unlink", "rmdir", "fsync", "utime")}
_open = builtins.open


def refusal(winerror: int, path: object, number: int = errno.EACCES) -> OSError:
    """The error that Python raises on Windows."""
    error = OSError(number, f"[WinError {winerror}]", str(path))
    error.winerror = winerror
    return error


class Rules:
    """The rules for what lies in `root`."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self.longest = ""
        """The longest path that was made, from the root on."""

    def actual(self, path: object, dir_fd: int | None = None) -> str | None:
        """The absolute path of what a name in any case means; None outside of the folder."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        text = os.path.normpath(os.path.join(os.getcwd(), text))
        if not text.startswith(self._root + os.sep):
            return None
        place = self._root
        for part in os.path.relpath(text, self._root).split(os.sep):
            place = os.path.join(place, self._same(place, part))
        return place

    def check_name(self, path: str) -> None:
        """Raises OSError for what Windows does not take as a name."""
        inner = os.path.relpath(path, self._root)
        if any(_DEVICE.fullmatch(part) or _BAD.search(part) for part in inner.split(os.sep)):
            raise refusal(BAD_NAME, path, errno.EINVAL)
        self.longest = max(self.longest, inner, key=len)

    def check_free(self, path: str) -> None:
        """Raises PermissionError if this process has a file open or mapped that is the path or lies in it."""
        for held, winerror in self._held():
            if held == path or held.startswith(path + os.sep):
                raise refusal(winerror, held)

    def is_mapped(self, path: str) -> bool:
        """Whether this process has it in memory."""
        return any(held == path and winerror == DENIED for held, winerror in self._held())

    def _held(self) -> Iterator[tuple[str, int]]:
        for number in _REAL["listdir"]("/proc/self/fd"):
            with suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{number}")
                if path.startswith(self._root) and stat.S_ISREG(_REAL["stat"](path).st_mode):
                    yield path, BUSY
        root = os.fsencode(self._root)
        with _open("/proc/self/maps", "rb") as lines:
            for line in lines:
                if root in line:
                    yield os.fsdecode(line.split(None, 5)[5].rstrip(b"\n")), DENIED

    def _same(self, place: str, name: str) -> str:
        with suppress(OSError):
            _REAL["lstat"](os.path.join(place, name))
            return name
        with suppress(OSError):
            return next((each for each in _REAL["listdir"](place) if each.casefold() == name.casefold()), name)
        return name


@contextmanager
def in_force(root: Path) -> Iterator[Rules]:
    """The rules hold in this folder for the time of a block."""
    rules, patch = Rules(root), pytest.MonkeyPatch()
    try:
        for name, function in _functions(rules).items():
            patch.setattr(os, name, function)
        patch.setattr(os, "remove", os.unlink)
        patch.setattr(builtins, "open", _opening(rules))
        patch.setattr(io, "open", builtins.open)
        yield rules
    finally:
        patch.undo()


def _functions(rules: Rules) -> dict[str, Callable]:
    """Those of `os` that differ."""
    actual = rules.actual

    def looking(name: str) -> Callable:
        def look(path=".", *arguments, dir_fd=None, **options):
            found = actual(path, dir_fd)
            if dir_fd is not None and found is None:
                options["dir_fd"] = dir_fd
            return _REAL[name](path if found is None else found, *arguments, **options)
        return look

    def making(name: str) -> Callable:
        def make(path, *arguments, dir_fd=None, **options):
            found = actual(path, dir_fd)
            if found is None:
                return _REAL[name](path, *arguments, dir_fd=dir_fd, **options)
            if name == "mkdir" or arguments[0] & os.O_CREAT:
                rules.check_name(found)
            return _REAL[name](found, *arguments, **options)
        return make

    def deleting(name: str) -> Callable:
        def delete(path, *, dir_fd=None):
            found = actual(path, dir_fd)
            if found is None:
                return _REAL[name](path, dir_fd=dir_fd)
            rules.check_free(found)
            return _REAL[name](found)
        return delete

    def moving(name: str) -> Callable:
        def move(source, target, **options):
            old, new = actual(source), actual(target)
            if old is None or new is None:
                return _REAL[name](source, target, **options)
            _REAL["lstat"](old)
            is_same = old == new
            new = os.path.join(os.path.dirname(new), os.path.basename(os.fsdecode(target))) if is_same else new
            rules.check_name(new)
            rules.check_free(old)
            if os.path.lexists(new) and not is_same:
                if name == "rename":
                    raise FileExistsError(errno.EEXIST, "[WinError 183]", new)
                if stat.S_ISDIR(_REAL["lstat"](new).st_mode):
                    raise refusal(DENIED, new)
                rules.check_free(new)
            return _REAL[name](old, new)
        return move

    def fsync(number) -> None:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        _REAL["fsync"](number)

    return {"fsync": fsync, **{name: looking(name) for name in ("stat", "lstat", "listdir", "scandir", "utime")},
            **{name: making(name) for name in ("open", "mkdir")},
            **{name: deleting(name) for name in ("unlink", "rmdir")},
            **{name: moving(name) for name in ("replace", "rename")}}


def _opening(rules: Rules) -> Callable:
    def opening(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        found = rules.actual(file)
        if found is not None:
            if not mode.startswith("r"):
                rules.check_name(found)
            if mode.startswith("w") and rules.is_mapped(found):
                raise refusal(MAPPED, found, errno.EINVAL)
            if "b" not in mode:
                encoding = encoding or "cp1252"
                newline = "\r\n" if newline is None and not mode.startswith("r") else newline
            file = found
        return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    return opening
