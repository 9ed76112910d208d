"""Atomic file writes, safe against a killed process, and what tells that a file changed: stamps and digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside `path`, which replaces `path` unless the block raises.

    The folder is created if it is missing; the block must write the temporary file.

    Raises:
        OSError: what the file system says, after the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the content does
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
