"""Files and folders that are written, replaced and deleted as a whole, whatever happens meanwhile, and what tells that
a file changed: stamps and digests.

Windows neither replaces, renames nor deletes what any program has open, and virus scanners, sync programs and our own
page open files for a moment. So all of this is tried again for a while.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PATIENCE = 10.0
"""Seconds for which a change is tried again that a program refuses which holds the file; a scanner reads a gigabyte."""

MOMENT = 0.2 if sys.platform == "win32" else 0.0
"""Seconds for which reading is tried again: Windows refuses it while the file is being replaced."""

_LONGEST_PAUSE = 0.5
"""Seconds between two tries."""

_HELD = (5, 32, 33, 145, 1224)
"""Windows' errors for what a program holds: access denied, sharing violation, lock violation, folder not empty (a file
deleted in it is still open), mapped into memory."""

_HELD_ERRNO = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY, errno.ENOTEMPTY)
"""The same as network drives give it on other systems."""

_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?$", re.IGNORECASE)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Differs when a file has changed, without reading it."""

    size: int
    """Bytes."""
    modified: int
    """st_mtime_ns: nanoseconds since 1970 of the last change of the content."""
    changed: int
    """st_ctime_ns: of the last change of its metadata; on Windows of its creation."""

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now. Raises OSError as `stat` does."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_device(name: str) -> bool:
    """Whether a name means a device in any folder on Windows, such as nul or con.txt."""
    return _DEVICE.match(name) is not None


def patiently(action: Callable[[], Result], seconds: float | None = None) -> Result:
    """Do what a program that holds a file may refuse, again and again for so many seconds, PATIENCE unless given.

    Raises:
        OSError: as `action` does, at once where it is for another reason.
    """
    end, pause = time.monotonic() + (PATIENCE if seconds is None else seconds), 0.01
    while True:
        try:
            return action()
        except OSError as error:
            winerror = getattr(error, "winerror", None)
            is_held = winerror in _HELD if winerror is not None else error.errno in _HELD_ERRNO
            if not is_held or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def beside(path: Path) -> Path:
    """A new name in the same folder for what is half-written or being deleted; it ends in .tmp, for `sweep`.

    It is short, since Windows takes paths of 259 characters, and others names of 255 bytes.
    """
    return path.with_name(f"{path.name[:48]}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside `path`, which replaces `path` unless the block raises.

    The folder is created if it is missing; the block must write the temporary file.

    Raises:
        OSError: what the file system says, after the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        sync(temporary)
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            delete(temporary, seconds=1)
        raise


def sync(path: Path) -> None:
    """Have a file's content on the disk, which a later rename may reach sooner. Raises OSError."""
    with patiently(lambda: path.open("rb+")) as file:  # opened for reading only, Windows does not do it
        os.fsync(file.fileno())


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder, over the file that is there. Raises OSError."""
    patiently(lambda: os.replace(source, target))


def delete(path: Path, seconds: float | None = None) -> None:
    """Delete a file, or a folder with all that is in it; nothing if there is none.

    A folder is renamed first, so that it disappears as a whole or not at all: where a program holds a file in it, the
    folder stays as it is, or what is left of it has a temporary name and is for `sweep`.

    Args:
        seconds: how long it is tried, PATIENCE unless given.

    Raises:
        OSError: it is still there.
    """
    if path.is_symlink() or not path.is_dir():
        patiently(lambda: path.unlink(missing_ok=True), seconds)
        return
    away = beside(path)
    patiently(lambda: os.replace(path, away), seconds)
    with suppress(OSError):
        patiently(lambda: shutil.rmtree(away), seconds)


def sweep(folder: Path, pattern: str = "*.tmp") -> None:
    """Delete what killed processes left half-written or half-deleted in a folder; what a program holds stays."""
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def read_bytes(path: Path) -> bytes:
    """The content of a small file that another thread or process may just be replacing. Raises OSError."""
    return patiently(path.read_bytes, MOMENT)


def digest(path: Path) -> str:
    """sha256, in hex, of a file's bytes; reads 1 MiB at a time."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def write_json(path: Path, content: Mapping) -> None:
    """A JSON file, written as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
