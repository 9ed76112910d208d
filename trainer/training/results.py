"""What comes back from the device: read one step late, while the device computes the next step.

A device computes what is enqueued for it while the host enqueues more. Where the host waits for a result, the device
has nothing to do until the host has enqueued again; so a step waits once at most, for the numbers of the step before.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import torch

from ..base.errors import UserError
from ..runs.events import StepDone

MAX_SKIPPED = 10
"""A run ends after so many steps in a row whose loss or gradient is not finite."""


def num_late(device: torch.device) -> int:
    """Steps that are not read before the next one is enqueued, where nothing is due: a CPU computes a step at once."""
    return 1 if device.type == "cuda" else 0


class Numbers:
    """Numbers on their way from the device; `read` waits for these, and not for what was enqueued after them.

    Args:
        values: (count,), on the device.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._on_host, self._event = values, None
        self._read: list[float] | None = None
        if values.device.type == "cuda":
            self._on_host = values.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.Event(blocking=True)  # sleeps while it waits, which leaves its core to the threads
            self._event.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        if self._read is None:
            if self._event is not None:
                self._event.synchronize()
            self._read = self._on_host.tolist()
        return self._read


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An optimizer step that the device may still be computing."""

    step: int
    """Counted from 1."""
    names: tuple[str, ...]
    """Of its samples."""
    timesteps: tuple[float, ...]
    """Noise level in 0..1 of each sample."""
    learning_rate: float
    numbers: Numbers
    """The loss of each sample, what came of preserving for each where the step does, the norm of the gradient before
    clipping, and the loss scale."""
    start: float
    """When the host began with it, by time.perf_counter."""


class Results:
    """The steps that are enqueued, and what came of those that were read.

    Args:
        total_steps: of the whole run.
        scaler: of the loss; `step_done` must know how far it is lowered where a gradient overflows.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, scaler: torch.amp.GradScaler) -> None:
        self._total_steps, self._steps_per_epoch, self._scaler = total_steps, steps_per_epoch, scaler
        self._enqueued: deque[Enqueued] = deque()
        self._in_vain: list[tuple[Enqueued, float]] = []  # the steps skipped in a row, and their losses
        self._last = 0.0
        self.losses: list[float] = []
        """The finite losses."""
        self.skipped = 0
        """Steps whose loss or gradient was not finite."""

    def __len__(self) -> int:
        """Steps that are enqueued and not read."""
        return len(self._enqueued)

    def add(self, step: Enqueued) -> None:
        """A further step is enqueued."""
        self._enqueued.append(step)

    def wait(self) -> None:
        """Return when the device has computed the oldest step that is enqueued."""
        self._enqueued[0].numbers.read()

    def read(self) -> StepDone:
        """What came of the oldest step that is enqueued, which is then no longer counted as enqueued."""
        step = self._enqueued[0]
        *numbers, grad_norm, scale = step.numbers.read()
        losses, preserved = numbers[:len(step.names)], numbers[len(step.names):]
        loss = sum(losses) / len(losses)
        if not all(map(math.isfinite, numbers)):
            grad_norm = math.nan
        now = time.perf_counter()
        # the device computes one step after the other, so this one had the time since the numbers of the last came
        seconds, self._last = now - max(step.start, self._last), now
        self._enqueued.popleft()
        self._count(step, loss, grad_norm, scale)
        return StepDone(
            step=step.step,
            total_steps=self._total_steps,
            epoch=(step.step - 1) // self._steps_per_epoch + 1,
            loss=loss,
            learning_rate=step.learning_rate,
            grad_norm=grad_norm,
            timesteps=tuple(round(t, 4) for t in step.timesteps),
            losses=tuple(losses),
            is_skipped=not math.isfinite(grad_norm),
            seconds=seconds,
            samples_per_second=len(losses) / seconds,
            preservation=sum(preserved) / len(preserved) if preserved else None,
        )

    def _count(self, step: Enqueued, loss: float, grad_norm: float, scale: float) -> None:
        if math.isfinite(loss):
            self.losses.append(loss)
        if math.isfinite(grad_norm):
            self._in_vain.clear()
            return
        self.skipped += 1
        # fp16: a lower loss scale cures an overflow, so only one at a scale that is then below 1 counts
        is_curable = self._scaler.is_enabled() and scale * self._scaler.get_backoff_factor() >= 1
        if not math.isfinite(loss) or not is_curable:
            self._in_vain.append((step, loss))

    def check_progress(self, learning_rate: float) -> None:
        """UserError if the last MAX_SKIPPED steps were all skipped.

        Args:
            learning_rate: as it is set, for the sentence.
        """
        if len(self._in_vain) < MAX_SKIPPED:
            return
        step, loss = self._in_vain[-1]
        raise UserError(
            f"The loss or its gradient was not finite for {len(self._in_vain)} steps in a row, the last at step "
            f"{step.step} ({', '.join(step.names)}, loss {loss}). The LoRA is as it was before them. Lower "
            f"learning_rate (now {learning_rate:g}), or load the model in bf16 or fp32.")
