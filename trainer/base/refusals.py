"""What the file system refused, as a sentence that says why and what helps: room only where the disk is full."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import UserError

_FULL, _FULL_ERRNO = (39, 112, 1295, 1816), (errno.ENOSPC, errno.EDQUOT)
"""Windows' errors and those of other systems for a disk or a quota that is full."""

_HELD, _HELD_ERRNO = (32, 33, 145, 1224), (errno.EBUSY, errno.ETXTBSY)
_DENIED, _DENIED_ERRNO = (5, 19), (errno.EACCES, errno.EPERM, errno.EROFS)
_GONE, _GONE_ERRNO = (2, 3), (errno.ENOENT,)
_IN_THE_WAY, _IN_THE_WAY_ERRNO = (183, 267), (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_LONG, _LONG_ERRNO = (206,), (errno.ENAMETOOLONG,)

_LONGEST = 259
"""Characters of a path that Windows takes; beyond, it says that there is no such folder."""


@contextmanager
def in_a_sentence(what: str, place: Path, then: str = "queue again") -> Iterator[None]:
    """Turns what the file system refuses in the block into the UserError of `refused`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise refused(what, place, error, then) from None


def refused(what: str, place: Path, error: Exception, then: str = "queue again") -> UserError:
    """The sentence about something that could not be written or deleted.

    Args:
        what: begins the sentence, such as "The checkpoint of step 4 cannot be written".
        place: the folder or file, which is named.
        error: an OSError, or a SafetensorError, which holds one as text.
        then: what to do when the cause is mended.
    """
    reason = getattr(error, "strerror", None) or str(error)
    why, remedy = _why(error, place)
    return UserError(f"{what} ({reason}), as {why}; {remedy}, then {then}.")


def _why(error: Exception, place: Path) -> tuple[str, str]:
    winerror, number = getattr(error, "winerror", None), getattr(error, "errno", None)
    if isinstance(error, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        winerror, number = (int(found[1]),) * 2 if _is_windows() else (None, int(found[1]))

    def is_one(windows: tuple[int, ...], others: tuple[int, ...]) -> bool:
        return winerror in windows if winerror is not None else number in others

    longest = max((len(str(path)) for path in (place, *_paths(error))), default=0)
    if is_one(_FULL, _FULL_ERRNO):
        return f"the disk of {place} is full", "free some space on it"
    if is_one(_LONG, _LONG_ERRNO) or (winerror in _GONE and longest > _LONGEST):
        return f"a path in {place} is too long", "choose a shorter name, or a folder nearer to the root of the disk"
    if is_one(_HELD, _HELD_ERRNO):
        return (f"another program has a file open in {place}",
                "close it, be it a player, a file manager, a sync program or a virus scanner")
    if is_one(_DENIED, _DENIED_ERRNO):
        held = ", or another program has a file open in it" if winerror is not None else ""
        return f"{place} does not allow it{held}", f"check its permissions{held and ', or close that program'}"
    if is_one(_GONE, _GONE_ERRNO):
        return f"{place} was deleted or renamed meanwhile", "leave it where it is, or put it back"
    if is_one(_IN_THE_WAY, _IN_THE_WAY_ERRNO):
        return f"a file is where a folder must be in {place}, or a folder where a file must be", "rename or delete it"
    return f"the disk of {place} does not work as it should", "check the disk and its connection"


def _paths(error: Exception) -> list[str]:
    return [path for name in ("filename", "filename2") if isinstance(path := getattr(error, name, None), str)]


def _is_windows() -> bool:
    return hasattr(OSError, "winerror")
