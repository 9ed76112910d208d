"""When a checkpoint is due by time: so often that little is lost, and so seldom that it costs little."""

from __future__ import annotations

import time

SHARE_OF_SAVING = 0.01
"""Of the time, at most, that checkpoints written by time take."""


class SavingTime:
    """Every so many minutes, or less often where writing takes long; 0 = never by time."""

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._saved, self._seconds = time.monotonic(), 0.0

    def took(self, seconds: float) -> None:
        """One was written just now."""
        self._saved, self._seconds = time.monotonic(), seconds

    @property
    def is_due(self) -> bool:
        """Whether it is time for one."""
        pause = max(60 * self._minutes, self._seconds / SHARE_OF_SAVING)
        return bool(self._minutes) and time.monotonic() - self._saved >= pause
