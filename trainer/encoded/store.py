"""The cache's files: one tensor each, named by a hash of content, and trusted only if their checksum is right.

    latents/<key>.safetensors   texts/<key>.safetensors   masks/<key>.safetensors   and one folder for each further
                                kind of condition
    index.sqlite                which files were found undamaged, by size and times, and when they were last used
    id                          changes when cache files are deleted, on which a ComfyUI graph may rely
"""

from __future__ import annotations

import logging
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..base import tensors
from ..base.errors import UserError
from ..base.files import MOMENT, Stamp, delete, patiently, replacing, sweep
from ..base.refusals import in_a_sentence, refused
from ..base.remembered import Remembered

logger = logging.getLogger("wantune")

SECONDS_A_DAY = 86400


@dataclass(frozen=True, slots=True)
class Size:
    """Number and total bytes of cache files."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 2**20:.1f} MiB"


class Store:
    """The cache folder. Safe to be killed at any moment, and to be shared by several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _index(self) -> Remembered:
        return Remembered(self.folder / "index.sqlite", "1")

    @property
    def id(self) -> str:
        """The same until the cache or some of its files are deleted."""
        with suppress(OSError):
            return (self.folder / "id").read_text(encoding="ascii")
        with suppress(OSError):
            return renew(self.folder)
        return ""  # nothing can be written to the cache, nor deleted from it

    def path(self, kind: str, key: str) -> Path:
        """The file of a tensor, whether it exists or not."""
        return self.folder / kind / f"{key}.safetensors"

    def use(self, path: Path) -> int:
        """Check a file and mark it as used now: the length of its tensor's first dimension, 0 if it cannot be used.

        The file is read, unless it has not changed since it was last found undamaged.
        """
        try:
            stamp = Stamp.of(path)
            known = self._index.get(self._name(path), stamp)
            length = known["length"] if known else len(_read(path))
        except (OSError, SafetensorError, ValueError):
            return 0
        self._remember(path, stamp, length)
        return length

    def write(self, path: Path, tensor: torch.Tensor) -> None:
        """Write a tensor atomically, so that a killed process never leaves half a cache file behind.

        Raises:
            UserError: the disk is full or cannot be written to.
        """
        with self._in_a_sentence():
            write_tensor(path, tensor)
            self._remember(path, Stamp.of(path), len(tensor))

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Encloses writes: on entry removes temporary files of killed processes, on exit saves the index."""
        with self._in_a_sentence():
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:  # another process fills this cache, and the temporary files may be its
            pass
        except (OSError, NotImplementedError) as error:  # a network drive without locks, or a read-only folder
            _say_once(f"The cache in {self.folder} cannot be locked ({getattr(error, 'strerror', None) or error}); it "
                      "is used without, but what a killed process left half-written in it stays there.")
        else:
            sweep(self.folder, "**/*.tmp")
        try:
            yield
        finally:
            self._index.save()
            with suppress(OSError):
                lock.release()

    def size(self) -> Size:
        """Size of the whole cache."""
        sizes = [status.st_size for _, status in self._files()]
        return Size(len(sizes), sum(sizes))

    def prune(self, max_age_days: float | None, max_bytes: int | None) -> tuple[Size, Size]:
        """Delete files not used for so many days, then those used longest ago until at most max_bytes are left.

        Args:
            max_age_days: None for no limit; likewise max_bytes.

        Returns:
            The sizes of what was deleted and of what is left.
        """
        used = sorted((self._last_used(path, status), path.name, path, status) for path, status in self._files())
        total, now, deleted = sum(status.st_size for *_, status in used), time.time(), []
        for seconds, _, path, status in used:
            is_old = max_age_days is not None and now - seconds > max_age_days * SECONDS_A_DAY
            if is_old or (max_bytes is not None and total > max_bytes):
                with suppress(OSError):  # in use by another program: it stays, and is counted as left
                    delete(path, MOMENT)
                    total -= status.st_size
                    deleted.append(status.st_size)
        if deleted:
            with self._in_a_sentence():
                renew(self.folder)
            self._index.keep({self._name(path) for path, _ in self._files()})
        self._index.save()
        return Size(len(deleted), sum(deleted)), self.size()

    def _in_a_sentence(self) -> AbstractContextManager:
        return in_a_sentence("The cache cannot be written", self.folder, "queue again (Prune Cache makes room, too)")

    def _files(self) -> Iterator:
        for path in self.folder.glob("*/*.safetensors"):
            with suppress(OSError):
                yield path, path.stat()

    def _last_used(self, path: Path, status) -> float:
        known = self._index.get(self._name(path), Stamp.of(path))
        return known["used"] if known else status.st_mtime

    def _remember(self, path: Path, stamp: Stamp, length: int) -> None:
        self._index.put(self._name(path), stamp, {"used": int(time.time()), "length": length}, written_by_us=True)

    def _name(self, path: Path) -> str:
        return f"{path.parent.name}/{path.stem}"


def read_tensor(path: Path) -> torch.Tensor:
    """The tensor of one cache file.

    Raises:
        UserError: the file is missing, damaged or refused; a damaged one is deleted, so that it is encoded again.
    """
    try:
        return patiently(lambda: _read(path))
    except (FileNotFoundError, SafetensorError, ValueError) as error:
        with suppress(OSError):
            delete(path)
            renew(path.parents[1])
        raise UserError(f"The cache file {path.name} is gone or damaged ({error}); queue again, and Cache Latents "
                        "makes it anew.") from None
    except OSError as error:
        raise refused(f"The cache file {path.name} cannot be read", path.parent, error) from None


def num_rows(path: Path) -> int:
    """The first dimension of a cache file's tensor, of which nothing but the head is read. Raises OSError or
    SafetensorError."""
    with safe_open(path, "pt") as file:
        return file.get_slice("tensor").get_shape()[0]


def write_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Write one tensor with its checksum atomically. Raises OSError or SafetensorError."""
    tensor = tensor.contiguous()
    with replacing(path) as temporary:
        save_file({"tensor": tensor}, temporary, metadata={"crc32": _checksum(tensor)})


@cache
def _say_once(sentence: str) -> None:
    logger.warning("%s", sentence)


def renew(folder: Path) -> str:
    """Give the cache a new id, so that ComfyUI executes the nodes that rely on it again."""
    name = uuid.uuid4().hex
    with replacing(folder / "id") as temporary:
        temporary.write_text(name, encoding="ascii")
    return name


def _read(path: Path) -> torch.Tensor:
    """The tensor of a cache file. Raises ValueError if its checksum is wrong."""
    found, metadata = tensors.read(path)
    tensor = found.get("tensor")
    if tensor is None or _checksum(tensor) != metadata.get("crc32"):
        raise ValueError("its checksum is wrong")
    return tensor


def _checksum(tensor: torch.Tensor) -> str:
    """crc32 of shape, dtype and bytes, in hex."""
    head = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), zlib.crc32(head)):08x}"
