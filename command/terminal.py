"""What is shown while something goes on: one line that is rewritten on a terminal, and elsewhere a line now and then.

It goes to standard error, so that standard output has results alone.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

SECONDS_ON_A_TERMINAL = 0.1
SECONDS_ELSEWHERE = 30.0
"""Between two lines of progress."""

SECONDS_TO_THE_FIRST = 5.0
"""Elsewhere than on a terminal: what is done sooner says so alone."""

BAR = 20
"""Characters of the bar."""


class Terminal:
    """Sentences and progress, which do not get into each other's way.

    Args:
        stream: standard error by default.
        is_quiet: show nothing: another process of the same run does.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, is_quiet: bool = False
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._is_quiet = is_quiet
        self._is_terminal = self._stream.isatty()
        self._last: float | None = None
        """When progress was shown last."""
        self._width = 0
        """Of the line of progress that is there now."""

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._clear()
        self._write(f"{sentence}\n")

    def progress(self, done: int, total: int, text: str, rest: str = "") -> None:
        """Say how far it is, unless that was said just now; the last of all is always said.

        Args:
            text: such as "step 83/600"; on a terminal a bar follows.
            rest: what comes after the bar.
        """
        now, is_last = self._clock(), done >= total
        pause = SECONDS_ON_A_TERMINAL if self._is_terminal else SECONDS_ELSEWHERE
        if self._last is None and not self._is_terminal:
            self._last = now - pause + SECONDS_TO_THE_FIRST
        if self._last is not None and now - self._last < pause and not is_last:
            return
        self._last = None if is_last else now
        if not self._is_terminal:
            self._write(f"{text}  {rest}".rstrip() + "\n")
            return
        filled = BAR * done // max(1, total)
        line = f"{text}  [{'=' * filled}{' ' * (BAR - filled)}]  {rest}".rstrip()
        line = line[:max(20, shutil.get_terminal_size().columns - 1)]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)
        if is_last:
            self.end()

    def end(self) -> None:
        """What follows begins on a new line."""
        if self._width:
            self._write("\n")
        self._width, self._last = 0, None

    def _clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
        self._width = 0

    def _write(self, text: str) -> None:
        if self._is_quiet:
            return
        encoding = self._stream.encoding or "utf-8"
        with suppress(BrokenPipeError):
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()


def duration(seconds: float) -> str:
    """Such as 3 min 5 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
