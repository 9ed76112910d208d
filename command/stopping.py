"""Ctrl-C: the first ends a run after its step, the second at once; both times what is learned is saved."""

from __future__ import annotations

import os
import signal
from types import FrameType

ASKED = b"\nStopping after this step, and saving; press Ctrl-C again to stop at once.\n"


class Stopping:
    """Inside the context Ctrl-C, and what ends a job from outside (SIGTERM), only ask for an end the first time."""

    def __init__(self) -> None:
        self.signal = 0
        """The number of the signal that asked; 0 = none has."""
        self._before: dict[int, object] = {}
        self._is_aborted = False

    @property
    def is_asked(self) -> bool:
        """Whether to stop after the present step."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for Ctrl-C, 143 for SIGTERM; 0 where nothing asked."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and not self._is_aborted:
            self._is_aborted = True  # what is saved then is not interrupted again
            raise KeyboardInterrupt
        if self.signal:
            return
        self.signal = number
        os.write(2, ASKED)  # print may just be at work, and cannot be entered again
