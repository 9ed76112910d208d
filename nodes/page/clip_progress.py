"""How far Compare Checkpoints is: the node's bar over all clips, and a line of text that says which one it is at."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils

from .live import show_progress, show_text

SECONDS_BETWEEN_TEXTS = 0.5


class ClipProgress:
    """Counts the steps of the sampler and, as one more, the decoding of each clip.

    Args:
        hidden: the node's hidden inputs.
        steps: of the sampler, for one clip.
    """

    def __init__(self, hidden, num_clips: int, steps: int) -> None:
        self._hidden, self._num_clips = hidden, num_clips
        self._bar = comfy.utils.ProgressBar(num_clips * (steps + 1), node_id=hidden and hidden.unique_id)
        self._done, self._said = 0, 0.0

    def begin(self, verb: str, number: int, label: str) -> None:
        """Say what is done to which clip, counted from 1.

        Raises:
            InterruptProcessingException: ComfyUI's, when the user pressed Cancel.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() >= self._said + SECONDS_BETWEEN_TEXTS:
            self._said = time.monotonic()
            show_progress(self._hidden, f"{verb} {number} of {self._num_clips}: {label}")

    def advance(self, *_step) -> None:
        """Move the bar: the callback of the sampler after each step, and called after each decoded clip."""
        self._done += 1
        self._bar.update_absolute(self._done)

    def end(self) -> None:
        """Say how many clips it was."""
        show_text(self._hidden, f"{self._num_clips} clips")
