"""A run as ComfyUI shows it: progress bar and text in the node, events for the page, lines in the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import comfy.model_management
import comfy.utils
from PIL import Image
from server import PromptServer

from ..trainer.dataset import ScanProgress
from ..trainer.events import Evaluated, Event, Finished, Previewed, Started, StepDone, to_json
from ..trainer.pipeline import Progress

logger = logging.getLogger("wantune")

SECONDS_BETWEEN_MESSAGES = 0.25
SECONDS_BETWEEN_LINES = 5.0

MAX_PICTURE = 1024
"""Pixels: the longer side of a picture in the node."""

Result = TypeVar("Result")


_running, _stop_asked = threading.Event(), threading.Event()
"""ComfyUI runs one prompt at a time, so there is one run to stop."""


_stopped: list[int] = []
"""The steps at which runs were stopped since ComfyUI started."""


def num_stopped() -> int:
    """How often a run was stopped since ComfyUI started."""
    return len(_stopped)


def ask_to_stop() -> bool:
    """End the present run after its present step; the graph goes on with what was learned. False: none is running."""
    if _running.is_set():
        _stop_asked.set()
    return _running.is_set()


@contextmanager
def running() -> Iterator[None]:
    """While a run can be stopped."""
    _stop_asked.clear()
    _running.set()
    try:
        yield
    finally:
        _running.clear()


class Live:
    """Publishes the events of one run for one node."""

    def __init__(self, hidden) -> None:
        self._hidden = hidden
        self._node_id = hidden.unique_id if hidden else None
        self._bar: comfy.utils.ProgressBar | None = None
        self._message_due = self._line_due = 0.0

    def publish(self, event: Event) -> None:
        """Show one event. Raises ComfyUI's interrupt when the user pressed Cancel."""
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, StepDone):
            self._show_step(event)
        elif isinstance(event, Evaluated):
            best = ", the best so far" if event.is_best else ""
            logger.info("Held-out loss %.4f after step %d (without the LoRA %.4f)%s", event.loss, event.step,
                        event.base_loss, best)
            self._send(event)
        elif isinstance(event, Previewed):
            logger.info("Preview after step %d: %s", event.step, ", ".join(event.files))
            self._send(event)
        elif isinstance(event, Finished):
            skipped = f", {event.skipped} of them without a finite loss and so without effect" if event.skipped else ""
            if event.reason == "stopped":
                _stopped.append(event.step)
            self.say(f"{event.reason}: {event.step} steps{skipped}")
            self._send(event)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def say(self, text: str) -> None:
        """A line in the log and under the node."""
        logger.info("%s", text)
        show_text(self._hidden, text)

    def show_picture(self, picture: Image.Image, step: int, total_steps: int) -> None:
        """In the node, as ComfyUI shows what a sampler is at."""
        self._bar.update_absolute(step, total_steps, ("JPEG", picture.convert("RGB"), MAX_PICTURE))

    @staticmethod
    def is_stop_asked() -> bool:
        """Whether the user wants to go on in the graph with what is learned."""
        return _stop_asked.is_set()

    def _start(self, event: Started) -> None:
        self._bar = comfy.utils.ProgressBar(event.total_steps, node_id=self._node_id)
        for fault in event.passed_over:
            logger.warning("%s", fault)
        done = f", {event.step} of them done before" if event.step else ""
        logger.info("Training %d modules, %d parameters, %d steps of %d an epoch%s", event.num_modules,
                    event.num_parameters, event.total_steps, event.steps_per_epoch, done)
        self._send(event)

    def _send(self, event: Event, name: str = "") -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            message = f"wantune.{name or type(event).__name__.lower()}"
            server.send_sync(message, {"node": self._node_id, **to_json(event)}, server.client_id)

    def _show_step(self, event: StepDone) -> None:
        self._bar.update_absolute(event.step, event.total_steps)
        now, last = time.monotonic(), event.step == event.total_steps
        if now >= self._message_due or last:
            self._message_due = now + SECONDS_BETWEEN_MESSAGES
            show_text(self._hidden, line(event))
            self._send(event, "step")
        if now >= self._line_due or last:
            self._line_due = now + SECONDS_BETWEEN_LINES
            logger.info("%s", line(event))


class ProgressLine:
    """The progress of a generator before training, as the node's bar and a line of text with the time that is left."""

    def __init__(self, hidden, verb: str) -> None:
        self._hidden = hidden
        self._verb = verb
        self._bar: comfy.utils.ProgressBar | None = None
        self._due = 0.0

    def follow(self, progress: Generator[ScanProgress | Progress, None, Result]) -> Result:
        """Run it to its end and give what it returns. Raises ComfyUI's interrupt when the user pressed Cancel."""
        with closing(progress):
            while True:
                try:
                    event = next(progress)
                except StopIteration as finished:
                    return finished.value
                self._show(event)
                comfy.model_management.throw_exception_if_processing_interrupted()

    def _show(self, event: ScanProgress | Progress) -> None:
        now = time.monotonic()
        if now < self._due and event.done < event.total:
            return
        self._due = now + SECONDS_BETWEEN_MESSAGES
        self._bar = self._bar or comfy.utils.ProgressBar(event.total, node_id=self._hidden and self._hidden.unique_id)
        self._bar.update_absolute(event.done, event.total)
        left = getattr(event, "seconds_left", None)
        eta = f", {_duration(left)} left" if left is not None else ""
        show_text(self._hidden, f"{self._verb} {getattr(event, 'kind', 'files')} {event.done} of {event.total}{eta}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def show_text(hidden, text: str) -> None:
    """Write under the node with these hidden inputs; the page shows PreviewText only in core's preview nodes."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and hidden is not None:  # else ComfyUI serves as a library, without a page
        # newer pages show Markdown, where only two spaces before its end make a line end
        server.send_progress_text(text.replace("\n", "  \n"), hidden.unique_id)


def line(event: StepDone) -> str:
    """One step in one line."""
    return (f"step {event.step}/{event.total_steps}  epoch {event.epoch}  loss {event.loss:.4f}  "
            f"lr {event.learning_rate:.2e}  {event.seconds:.3f} s/step  {event.samples_per_second:.2f} samples/s")
