"""Files written as a whole or not at all, whenever the process is killed, and told apart by their bytes."""

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
    """What changes when a file does: bytes, and nanoseconds of its content and of its entry in the folder."""

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError as `stat` does."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path`, whose folder is made; when the block ends well it takes path's place.

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
    """sha256 of a file's bytes, however large it is."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def write_json(path: Path, content: Mapping) -> None:
    """A JSON file, written as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
