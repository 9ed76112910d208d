"""Whether files are those that were exported, without reading gigabytes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError, printable

WHOLE = 8 << 20
"""Bytes of the largest file that is read whole."""

_HEAD, _PIECES, _PIECE = 1 << 20, 256, 1 << 14
"""Of a larger one: bytes at its start, where a safetensors file names its tensors, and evenly spaced pieces to its end.
A fine-tune changes every tensor, a broken transfer the size or the end."""


@dataclass(frozen=True, slots=True)
class Print:
    """What a file is known by."""

    size: int
    """Bytes."""
    digest: str = ""
    """Of its content, see `of`; "" where the size alone is compared."""


def of(path: Path) -> Print:
    """The print of a file: its size and a sha256, in hex, of all of it, or of 5 MiB spread over it.

    Raises:
        OSError: it cannot be read.
    """
    sha = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= WHOLE:
            sha.update(file.read())
        else:
            sha.update(file.read(_HEAD))
            for number in range(_PIECES):
                file.seek((size - _PIECE) * number // (_PIECES - 1))
                sha.update(file.read(_PIECE))
    return Print(size, sha.hexdigest())


def compare(known: Mapping[str, Print], found: Mapping[str, Path], place: Path, what: str, remedy: str) -> None:
    """Hold files against their prints; nothing is read of those whose size differs.

    Args:
        known: by name.
        found: the files that are there, by name; further ones say nothing.
        place: the folder, and `what` it holds, for sentences.
        remedy: what to do about a file that is not there or not the same.

    Raises:
        UserError: the first one that is missing or differs, and how many more.
    """
    missing = [name for name in known if name not in found]
    if missing:
        raise UserError(f"{printable(missing[0])} of {what} is missing in {place}{_more(missing)}; {remedy}.")
    for name, wanted in known.items():
        try:
            size = found[name].stat().st_size
            if size != wanted.size:
                raise UserError(f"{printable(name)} of {what} in {place} has {size} bytes, exported were "
                                f"{wanted.size}; {remedy}.")
            if wanted.digest and of(found[name]) != wanted:
                raise UserError(f"{printable(name)} of {what} in {place} has another content than what was exported; "
                                f"{remedy}.")
        except OSError as error:
            raise UserError(f"{printable(name)} of {what} in {place} cannot be read ({error.strerror}); {remedy}."
                            ) from None


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
