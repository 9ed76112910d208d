"""A run as ComfyUI shows it: progress bar and text in the node, events for the page, lines in the log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.model_management
from server import PromptServer

from ...trainer.runs import history
from ...trainer.runs.events import Evaluated, Event, Finished, Noted, Previewed, Started, StepDone, to_json
from ...trainer.runs.folder import RunFolder
from ..media.measured import told_of
from . import shown
from .asking import pages_of, running_user
from .bar import Bar, Turn

logger = logging.getLogger("wantune")

SECONDS_BETWEEN_MESSAGES = 0.6
"""Between messages about steps; with two for ComfyUI's bar and rare events the page gets at most 4 a second."""

SECONDS_BETWEEN_LINES = 5.0
"""Between lines about steps in the log."""

MAX_POINTS = 64
"""Steps that one message tells of, the latest ones."""

PACE_DECAY = 0.9
"""Decay of the exponential moving average of the seconds between steps."""


@dataclass(slots=True)
class Current:
    """What is going on: a run, or the two of a pair; ComfyUI runs one prompt at a time, so there is one at most."""

    runs: tuple[str, ...]
    """Names of folders."""
    user: str | None
    """ComfyUI's user whose page queued it."""
    run: str = ""
    """Of `runs`, the one that is computed."""
    now: dict = field(default_factory=dict)
    """Its speed, time that is left and memory, as the page shows them."""
    is_stop_asked: bool = False


_current: Current | None = None

_stopped: list[int] = []
"""The steps at which runs were stopped since ComfyUI started."""


def num_stopped() -> int:
    """How often a run was stopped since ComfyUI started."""
    return len(_stopped)


def current() -> Current | None:
    """What is going on."""
    return _current


@contextmanager
def going_on(*runs: str) -> Iterator[None]:
    """Make these the current runs, which can be stopped, for the time of a block."""
    global _current
    _current = Current(runs, running_user(), runs[0])
    try:
        yield
    finally:
        _current = None


def ask_to_stop(run: str = "") -> bool:
    """End a run after its current step; the graph goes on with what was learned.

    Args:
        run: the name of its folder; "" for whichever is running. Both of a pair end.

    Returns:
        Whether that run is going on.
    """
    found = _current
    if found is None or run not in ("", *found.runs):
        return False
    found.is_stop_asked = True
    return True


class Live:
    """Publishes the events of one run for one node.

    Args:
        hidden: the node's hidden inputs; None where there is no node.
        expert: which one of a pair the run trains, "" where it is alone.
        bar: the bar of the pair.
    """

    def __init__(self, hidden, expert: str = "", bar: Bar | None = None) -> None:
        self._hidden, self._expert = hidden, expert
        self._workflow, self._node = shown.key_of(hidden)
        self.run = ""
        """The name of its folder."""
        self._bar, self._message_turn = bar or Bar(hidden), Turn(SECONDS_BETWEEN_MESSAGES)
        self._line_turn = Turn(SECONDS_BETWEEN_LINES)
        self._points: list[tuple[int, float | None, float]] = []
        self._untold: StepDone | None = None
        self._pace = 0.0
        self._last_time: float | None = time.monotonic()

    def describe(self, folder: RunFolder, base: str, notes: tuple[str, ...] = (), is_finished: bool = False) -> None:
        """Write the run's owner and graph into its folder, and let the node's panel show the run.

        Args:
            base: the model it is trained on, in words.
            notes: sentences about how it is trained, for the page.
            is_finished: it is only loaded, and its folder stays as it is.
        """
        self.run = folder.path.name
        if not self._expert:
            shown.remember_runs(self._hidden, self.run)
        if is_finished:
            return
        extra = getattr(self._hidden, "extra_pnginfo", None) or {}
        prompt = {node: {name: part for name, part in content.items() if name in ("class_type", "inputs", "_meta")}
                  for node, content in (getattr(self._hidden, "prompt", None) or {}).items()}
        started = history.read_json(folder.path / "origin.json").get("started", time.time())
        origin = {"workflow": self._workflow, "node": self._node, "user": running_user(), "base": base,
                  "started": started, "notes": notes}
        folder.describe(origin, {"workflow": extra.get("workflow"), "prompt": prompt or None})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make it the current run, which can be stopped, for the time of a block."""
        try:
            with going_on(self.run):
                yield
        finally:
            self.end()

    def end(self) -> None:
        """Tell the page that the run is no longer going on, however that came."""
        self._send("ended", {})

    def publish(self, event: Event) -> None:
        """Show one event.

        Raises:
            InterruptProcessingException: ComfyUI's, when the user pressed Cancel.
        """
        if _current is not None and _current.run != self.run:  # its turn of a pair begins
            _current.run, _current.now, self._last_time = self.run, {}, None
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, StepDone):
            self._show_step(event)
        elif isinstance(event, Evaluated):
            learned = "" if event.learned is None else f", learned {event.learned:.4f}"
            drift = "" if event.drift is None else f", drift {event.drift:.4f}"
            best = ", the best so far" if event.is_best else ""
            logger.info("Held-out loss %.4f after step %d (without the LoRA %.4f)%s%s%s", event.loss,
                        event.step, event.base_loss, learned, drift, best)
        elif isinstance(event, Previewed):
            logger.info("Preview after step %d: %s", event.step, "; ".join(filter(None, (
                ", ".join(event.files), told_of(event)))))
        elif isinstance(event, Noted):
            logger.warning("%s", event.sentence)
        elif isinstance(event, Finished):
            skipped = f", {event.skipped} of them without a finite loss and so without effect" if event.skipped else ""
            if event.reason == "stopped":
                _stopped.append(event.step)
            self.say(f"{self._expert and f'{self._expert} expert, '}{event.reason}: {event.step} steps{skipped}")
        if not isinstance(event, StepDone):
            self._send(type(event).__name__.lower(), to_json(event))
        comfy.model_management.throw_exception_if_processing_interrupted()

    @staticmethod
    def say(text: str) -> None:
        """A line in the log; the node shows the run itself."""
        logger.info("%s", text)

    @staticmethod
    def is_stop_asked() -> bool:
        """Whether the user wants to go on in the graph with what is learned."""
        return _current is not None and _current.is_stop_asked

    def _start(self, event: Started) -> None:
        self._bar.start(self.run, event.step, event.total_steps)
        self._last_time = time.monotonic()
        for fault in event.passed_over:
            logger.warning("%s", fault)
        done = f", {event.step} of them done before" if event.step else ""
        logger.info("Training %d modules, %d parameters, %d steps of %d an epoch%s", event.num_modules,
                    event.num_parameters, event.total_steps, event.steps_per_epoch, done)

    def _send(self, name: str, content: dict) -> None:
        """Send the message wantune.<name> to every page of the user who queued the run."""
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            message = {**content, "workflow": self._workflow, "node": self._node, "run": self.run}
            for page in pages_of(running_user()):
                server.send_sync(f"wantune.{name}", message, page)

    def _show_step(self, event: StepDone) -> None:
        now, last = time.monotonic(), event.step == event.total_steps
        seconds = event.seconds if self._last_time is None else now - self._last_time
        self._pace = PACE_DECAY * self._pace + (1 - PACE_DECAY) * seconds if self._pace else seconds
        self._last_time = now
        self._bar.show(self.run, event.step, event.total_steps, self._pace, now)
        loss = event.loss if math.isfinite(event.loss) else None
        self._points = [*self._points, (event.step, loss, event.learning_rate)][-MAX_POINTS:]
        self._untold = event
        if self._message_turn.has_come(now, last):
            self.tell()
        if self._line_turn.has_come(now, last):
            logger.info("%s", f"{self._expert} expert, {line(event)}" if self._expert else line(event))

    def tell(self) -> None:
        """Tell the page of the steps that it has not heard of."""
        event, self._untold = self._untold, None
        if event is not None:
            self._send("step", {"step": event.step, "total_steps": event.total_steps, "epoch": event.epoch,
                                "points": self._points, **self._now(event)})
            self._points = []

    def _now(self, event: StepDone) -> dict:
        """Speed, time left and memory; the time left includes evaluation and previews, the speed does not.

        The time left is that of all runs of the node.
        """
        total = comfy.model_management.get_total_memory()
        now = {
            "seconds_per_step": event.seconds,
            "samples_per_second": event.samples_per_second,
            "seconds_left": self._bar.seconds_left,
            "memory_bytes": total - comfy.model_management.get_free_memory(),
            "memory_total_bytes": total,
        }
        if _current is not None:
            _current.now = now
        return now


def show_text(hidden, text: str) -> None:
    """Show what a node has done in the node with these hidden inputs, also when the page is loaded again."""
    show_progress(hidden, text)
    shown.remember(hidden, "text", text)


def show_progress(hidden, text: str) -> None:
    """Show a text for now; the page shows PreviewText only in ComfyUI's own nodes."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and hidden is not None:  # else ComfyUI serves as a library, without a page
        # newer front ends render Markdown, where a line break needs two spaces before it
        server.send_progress_text(text.replace("\n", "  \n"), hidden.unique_id)


def line(event: StepDone) -> str:
    """One step in one line."""
    return (f"step {event.step}/{event.total_steps}  epoch {event.epoch}  loss {event.loss:.4f}  "
            f"lr {event.learning_rate:.2e}  {event.seconds:.3f} s/step  {event.samples_per_second:.2f} samples/s")
