"""How the files of a cache are divided over processes that fill it together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ..base.errors import UserError


class Shares(Protocol):
    """What each of the processes has of them (`training.ranks.Ranks`)."""

    rank: int
    count: int

    def owns(self, key: str) -> bool:
        """Whether what has this key, a hash of content, is made by this process; it is by exactly one."""

    def gathered(self, found: Mapping) -> dict:
        """What all processes have found, once all have come so far."""


class Whole:
    """One process, which fills all of it."""

    rank, count = 0, 1

    def owns(self, key: str) -> bool:
        return True

    def gathered(self, found: Mapping) -> dict:
        return dict(found)


WHOLE = Whole()


def check_seen(paths: Iterable[Path], shares: Shares) -> None:
    """UserError where a file that another process has made is not to be seen by this one."""
    missing = None if shares.count == 1 else next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"Process {shares.rank} does not see {missing.name}, which another one has put into the cache "
                        f"{missing.parents[1]}; choose a cache folder on a disk that all {shares.count} of them share.")
