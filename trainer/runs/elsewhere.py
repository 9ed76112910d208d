"""The folder of a run for those of its processes that leave writing to the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .attempts import Opened
from .events import Event
from .folder import RunFolder


class Elsewhere(RunFolder):
    """What would write does nothing; the folder itself may be on another machine."""

    def log(self, event: Event) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def describe(self, origin: Mapping, workflow: Mapping) -> None:
        pass

    def keep_metadata(self, metadata: Mapping[str, str]) -> None:
        pass

    def mark_best(self, step: int, loss: float, learned: float = math.nan) -> None:
        pass


class NoLock:
    """Stands in for the lock, which the first process holds."""

    fault = ""

    def release(self) -> None:
        """Nothing is held."""


def told(opened: Opened) -> Opened:
    """What the other processes get of a run that the first one has opened: all of it, for reading."""
    lock = None if opened.lock is None else NoLock()
    return Opened(Elsewhere(opened.folder.path), opened.key, opened.found, lock)
