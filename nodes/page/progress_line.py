"""The progress of scanning or encoding, as the node's bar and a line of text."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

import comfy.model_management
import comfy.utils

from ...trainer.data.scan import ScanProgress
from ...trainer.encoded.fill import Progress
from .live import SECONDS_BETWEEN_MESSAGES, Turn, show_progress

Result = TypeVar("Result")


class ProgressLine:
    """The progress of scanning or encoding, as the node's bar and a line of text with the time that is left.

    Args:
        hidden: the node's hidden inputs.
        verb: begins that line, such as "encoding"; without one there is only the bar.
    """

    def __init__(self, hidden, verb: str = "") -> None:
        self._hidden = hidden
        self._verb = verb
        self._bar: comfy.utils.ProgressBar | None = None
        self._turn = Turn(SECONDS_BETWEEN_MESSAGES)

    def follow(self, progress: Generator[ScanProgress | Progress, None, Result]) -> Result:
        """Run the generator to its end.

        Returns:
            What the generator returns.

        Raises:
            InterruptProcessingException: ComfyUI's, when the user pressed Cancel.
        """
        with closing(progress):
            while True:
                try:
                    event = next(progress)
                except StopIteration as finished:
                    return finished.value
                self._show(event)
                comfy.model_management.throw_exception_if_processing_interrupted()

    def _show(self, event: ScanProgress | Progress) -> None:
        if not self._turn.has_come(time.monotonic(), event.done >= event.total):
            return
        self._bar = self._bar or comfy.utils.ProgressBar(event.total, node_id=self._hidden and self._hidden.unique_id)
        self._bar.update_absolute(event.done, event.total)
        left = getattr(event, "seconds_left", None)
        eta = f", {_duration(left)} left" if left is not None else ""
        if self._verb:
            show_progress(self._hidden, f"{self._verb} {event.kind} {event.done} of {event.total}{eta}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
