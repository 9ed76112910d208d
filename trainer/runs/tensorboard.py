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


class Scalars:
    """Writes TensorBoard events; does nothing where TensorBoard is not installed or the disk refuses it.

    Args:
        step: the step from which the run resumes: what an interrupted run wrote for later steps is purged; everything
            for 0, as the run begins again then.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            _wait_for_a_later_name(folder)
            with self._if_possible():
                self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def add(self, event: Event) -> None:
        """Write the numbers of one event."""
        if self._writer is None:
            return
        with self._if_possible():
            if isinstance(event, StepDone):
                self._add_step(event)
            elif isinstance(event, Evaluated):
                self._writer.add_scalar("held-out loss/with the LoRA", event.loss, event.step)
                self._writer.add_scalar("held-out loss/without", event.base_loss, event.step)
                self._writer.add_scalar("meters/learned", event.learned, event.step)
                if event.drift is not None:
                    self._writer.add_scalar("meters/drift", event.drift, event.step)
            elif isinstance(event, Previewed):
                self._add_preview(event)

    def add_picture(self, name: str, pixels_HW3: np.ndarray, step: int) -> None:
        """Write a preview image, uint8."""
        if self._writer is not None:
            with self._if_possible():
                self._writer.add_image(f"preview/{name}", pixels_HW3, step, dataformats="HWC")

    def flush(self) -> None:
        """What was added is in the file when this returns."""
        if self._writer is not None:
            with self._if_possible():
                self._writer.flush()

    def close(self) -> None:
        """Everything is on disk when this returns."""
        if self._writer is not None:
            with self._if_possible():
                self._writer.close()

    @contextmanager
    def _if_possible(self) -> Iterator[None]:
        """Ends the writing where the disk refuses it; the run's own files tell of a full disk, and have the numbers."""
        try:
            yield
        except OSError:
            self._writer = None

    def _add_step(self, event: StepDone) -> None:
        if math.isfinite(event.loss):
            self._writer.add_scalar("loss", event.loss, event.step)
        if math.isfinite(event.grad_norm):
            self._writer.add_scalar("gradient norm", event.grad_norm, event.step)
        if event.preservation is not None and math.isfinite(event.preservation):
            self._writer.add_scalar("preservation", event.preservation, event.step)
        self._writer.add_scalar("learning rate", event.learning_rate, event.step)
        for t, loss in zip(event.timesteps, event.losses, strict=True):
            if math.isfinite(loss):
                part = min(LEVELS - 1, int(t * LEVELS))
                name = f"loss by noise level/{part / LEVELS:g} to {(part + 1) / LEVELS:g}"
                self._writer.add_scalar(name, loss, event.step)

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
