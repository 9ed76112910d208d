"""The two runs of a pair as ComfyUI shows them: one progress bar and one Stop, and the messages of each run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ...trainer.runs.events import Event
from ...trainer.training.experts import HIGH, LOW
from . import shown
from .bar import Bar
from .live import Live, going_on


class PairLive:
    """Publishes the events of a pair for one node.

    Args:
        hidden: the node's hidden inputs; None where there is no node.
    """

    def __init__(self, hidden) -> None:
        self._hidden = hidden
        self._bar = Bar(hidden)
        self._lives = {expert: Live(hidden, expert, self._bar) for expert in (HIGH, LOW)}
        self._present = ""

    def describe(self, expert: str, *described, **options) -> None:
        """As `Live.describe`, of one of the two."""
        self._lives[expert].describe(*described, **options)
        shown.remember_runs(self._hidden, *(self._lives[expert].run for expert in (HIGH, LOW)))

    @contextmanager
    def running(self, experts: Collection[str]) -> Iterator[None]:
        """Make the runs of these experts the current ones for the time of a block; the others are done."""
        lives = [self._lives[expert] for expert in experts]
        self._bar.runs = len(lives)
        try:
            with going_on(*(live.run for live in lives)):
                yield
        finally:
            for live in lives:
                live.end()

    def publish(self, expert: str, event: Event) -> None:
        """Show one event of one of the runs; raises as `Live.publish`."""
        if self._present and self._present != expert:
            self._lives[self._present].tell()
        self._present = expert
        self._lives[expert].publish(event)

    say = staticmethod(Live.say)
    is_stop_asked = staticmethod(Live.is_stop_asked)
