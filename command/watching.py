"""The events of a run on a terminal: a line of progress, and sentences for what happens once in a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..trainer.runs.events import Evaluated, Event, Finished, Noted, Previewed, Started, StepDone
from ..trainer.runs.history import EMA_DECAY
from .terminal import Terminal, duration


class Watching:
    """Shows the events of one run.

    Args:
        title: begins each line, such as "high: "; "" where there is one run.
    """

    def __init__(
        self, terminal: Terminal, title: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._terminal, self._title, self._clock = terminal, title, clock
        self._start: tuple[float, int] | None = None
        """When the first step was done, and its number."""
        self._ema, self._weight = 0.0, 0.0
        self.step, self.total_steps = 0, 0

    def show(self, event: Event) -> None:
        """Show one event."""
        say = self._terminal.say
        if isinstance(event, StepDone):
            self._show_step(event)
        elif isinstance(event, Started):
            self.step, self.total_steps = event.step, event.total_steps
            for fault in event.passed_over:
                say(f"{self._title}{fault}")
            begun = f"going on after step {event.step}" if event.step else "beginning"
            say(f"{self._title}{begun}: {event.total_steps} steps, {event.steps_per_epoch} an epoch; "
                f"{event.num_modules} modules, {event.num_parameters:,} numbers are trained")
        elif isinstance(event, Evaluated):
            learned = "" if event.learned is None else f", learned {event.learned:.4f}"
            drift = "" if event.drift is None else f", drift {event.drift:.4f}"
            best = ", the best so far" if event.is_best else ""
            say(f"{self._title}step {event.step}: held-out loss {event.loss:.4f} (without the LoRA "
                f"{event.base_loss:.4f}){learned}{drift}{best}")
        elif isinstance(event, Noted):
            say(f"{self._title}{event.sentence}")
        elif isinstance(event, Previewed):
            say(f"{self._title}step {event.step}: {', '.join(event.files)}")
        elif isinstance(event, Finished):
            self._terminal.end()
            skipped = f", {event.skipped} skipped as not finite" if event.skipped else ""
            say(f"{self._title}{event.reason} after step {event.step}, {duration(event.seconds)}{skipped}")

    def _show_step(self, event: StepDone) -> None:
        now, self.step = self._clock(), event.step
        if math.isfinite(event.loss):
            self._ema = EMA_DECAY * self._ema + (1 - EMA_DECAY) * event.loss
            self._weight = EMA_DECAY * self._weight + (1 - EMA_DECAY)
        loss = f"loss {self._ema / self._weight:.4f}" if self._weight else "loss not finite"
        left = ""
        if self._start is None:
            self._start = now, event.step
        elif self._start[1] < event.step < event.total_steps:
            seconds = (now - self._start[0]) / (event.step - self._start[1])
            left = f"  {duration(seconds * (event.total_steps - event.step))} left"
        self._terminal.progress(
            event.step, event.total_steps, f"{self._title}step {event.step}/{event.total_steps}",
            f"epoch {event.epoch}  {loss}  lr {event.learning_rate:.2e}  {event.samples_per_second:.2f} samples/s"
            f"{left}")
