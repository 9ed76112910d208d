"""The run's numbers and previews for TensorBoard; log.jsonl has all of the numbers too."""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .events import Evaluated, Event, Previewed, StepDone

LEVELS = 5
"""Equal parts of the noise levels 0..1, for each of which the loss is shown separately."""

SECONDS_BETWEEN_WRITES = 1.0
"""Of steps. Each write wakes TensorBoard's own thread, for which Python makes the training wait."""

MOST_WAITING = 1000
"""Steps; TensorBoard's queue, which would stop the training where it is full, holds twice as many."""


class Scalars:
    """Writes TensorBoard events; does nothing where TensorBoard is not installed or the disk refuses it.

    Args:
        step: the step from which the run resumes: what an interrupted run wrote for later steps is purged; everything
            for 0, as the run begins again then.
        is_first: whether this process writes; of several that train one run only the first does.
    """

    def __init__(self, folder: Path, step: int, is_first: bool = True) -> None:
        self._writer = None
        self._waiting: list[tuple[list[tuple[str, float]], int, float]] = []  # numbers, step, time
        self._written = time.monotonic()
        if is_first and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            _wait_for_a_later_name(folder)
            with self._if_possible():
                self._writer = SummaryWriter(
                    str(folder), purge_step=step + 1 if step else 0, max_queue=2 * MOST_WAITING)

    def add(self, event: Event) -> None:
        """Write the numbers of one event."""
        if self._writer is None:
            return
        with self._if_possible():
            if isinstance(event, StepDone):
                self._add_step(event)
                return
            self._write()
            if isinstance(event, Evaluated):
                self._writer.add_scalar("held-out loss/with the LoRA", event.loss, event.step)
                self._writer.add_scalar("held-out loss/without", event.base_loss, event.step)
                for name, value in (("learned", event.learned), ("drift", event.drift)):
                    if value is not None:
                        self._writer.add_scalar(f"meters/{name}", value, event.step)
            elif isinstance(event, Previewed):
                self._add_preview(event)

    def add_picture(self, name: str, pixels_HW3: np.ndarray, step: int) -> None:
        """Write a preview image, uint8."""
        if self._writer is not None:
            with self._if_possible():
                self._write()
                self._writer.add_image(f"preview/{name}", pixels_HW3, step, dataformats="HWC")

    def flush(self) -> None:
        """What was added is in the file when this returns."""
        if self._writer is not None:
            with self._if_possible():
                self._write()
                self._writer.flush()

    def close(self) -> None:
        """Everything is on disk when this returns."""
        if self._writer is not None:
            with self._if_possible():
                self._write()
                self._writer.close()

    @contextmanager
    def _if_possible(self) -> Iterator[None]:
        """Ends the writing where the disk refuses it; the run's own files tell of a full disk, and have the numbers."""
        try:
            yield
        except OSError:
            self._writer = None

    def _add_step(self, event: StepDone) -> None:
        values = [("loss", event.loss), ("gradient norm", event.grad_norm), ("learning rate", event.learning_rate)]
        if event.preservation is not None:
            values.append(("preservation", event.preservation))
        for t, loss in zip(event.timesteps, event.losses, strict=True):
            part = min(LEVELS - 1, int(t * LEVELS))
            values.append((f"loss by noise level/{part / LEVELS:g} to {(part + 1) / LEVELS:g}", loss))
        self._waiting.append(([each for each in values if math.isfinite(each[1])], event.step, time.time()))
        if len(self._waiting) == MOST_WAITING or time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        """What steps have left, each as one record with all its numbers."""
        from torch.utils.tensorboard.summary import Summary

        waiting, self._waiting, self._written = self._waiting, [], time.monotonic()
        for values, step, seconds in waiting:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])
            self._writer.file_writer.add_summary(summary, step, seconds)

    def _add_preview(self, event: Previewed) -> None:
        """The first point of a curve, at step 0, is the model without the adapter."""
        for name, values in (("likeness", event.likeness), ("motion", event.motion)):
            for number, value in enumerate(values, 1):
                if value is not None and math.isfinite(value):
                    self._writer.add_scalar(f"preview {name}/prompt {number}", value, event.step)


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads files by their names, which begin with the second: what is purged must come before."""
    found = (re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.out.tfevents.*"))
    newest = max((int(match[1]) for match in found if match), default=0)
    time.sleep(min(1.0, max(0.0, newest + 1 - time.time())))
