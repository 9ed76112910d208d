"""Two runs by turns, one for each expert of Wan2.2 A14B: one stream of events, one Stop.

Each is a run of its own, with its folder, its window of noise levels and its model, so what it learns is what it learns
alone, bit for bit, however the turns fall. While one waits its generator is left where it stands: the adapter and what
the optimizer remembers stay on the device, and its model may be moved off.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing

from ..runs.events import Event, Paused, Started, StepDone
from .previews import Previews
from .run import Run

SHARE_OF_SWAPS = 0.05
"""Of the time, at most, that goes into bringing the other model to the device."""

LEAST_STEPS = 10
"""Of a turn, also where both models fit on the device and a swap costs nothing."""


class Pair:
    """Two opened runs.

    Args:
        runs: by the expert that each trains, in the order in which they begin.
        takes_turns: whether they alternate; else, and always where several processes train, the second begins when the
            first is done.
        clock: seconds, as time.perf_counter gives them.
    """

    def __init__(
        self, runs: Mapping[str, Run], takes_turns: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.runs = dict(runs)
        self.stop = False
        """Set by the caller of `events`: end both after the current step."""
        self._takes_turns = takes_turns
        self._turns = Turns(clock)

    def events(self, previews: Mapping[str, Previews | None]) -> Iterator[tuple[str, Event]]:
        """(expert, event) until both are at their end or `stop` is set; the last finished step of each is saved.

        A caller that aborts must close the generator.

        Raises:
            UserError: as `Run.events`; the other run is saved too.
        """
        with ExitStack() as stack:
            events = {expert: stack.enter_context(closing(run.events(previews[expert])))
                      for expert, run in self.runs.items() if not run.is_finished}
            waiting, begun = deque(events), set()
            while waiting:
                expert = waiting.popleft()
                if expert not in begun and self.runs[expert].ranks.any(self.stop):
                    self.runs[expert].leave_off()
                    continue
                begun.add(expert)
                is_over = yield from self._turn(expert, events[expert], bool(waiting))
                if not is_over:
                    waiting.append(expert)

    def _turn(
        self, expert: str, events: Iterator[Event], is_awaited: bool
    ) -> Generator[tuple[str, Event], None, bool]:
        """The events of one turn; returns whether the run is over.

        Args:
            is_awaited: whether the other one waits for the end of this turn.
        """
        run = self.runs[expert]
        # the turns go by the clock, and those of several processes differ
        alternates = self._takes_turns and is_awaited and run.ranks.count == 1
        run.stop = self.stop
        run.pause_at = self._turns.begin(expert) if alternates else 0
        for event in events:
            if isinstance(event, Paused):
                if self.stop:
                    continue
                if not (steps := self._turns.steps_left(expert)):
                    return False
                run.pause_at = event.step + steps
                continue
            self._turns.see(expert, event)
            if alternates and isinstance(event, Started):
                run.pause_at = event.step + LEAST_STEPS
            elif alternates and isinstance(event, StepDone):  # only ever later: the next step may be under way
                run.pause_at = max(run.pause_at, event.step + self._turns.steps_left(expert))
            yield expert, event
            run.stop = self.stop
        return True


class Turns:
    """How long each of two runs trains before the other one does, by what a swap was measured to cost.

    The cost of a swap is the time from the beginning of a turn to its first finished step, less that of a usual step. A
    run's first turn is not counted: to begin takes as long in any order.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._began: float | None = None
        """When the present turn began, until its first step is done."""
        self._step: dict[str, int] = {}
        self._seconds: dict[str, tuple[float, int]] = {}
        """Of each run the seconds of its usual steps, and their number."""
        self._costs: dict[str, float] = {}
        """Seconds of the last swap to each run."""
        self.spent = 0.0
        """Seconds of all swaps."""

    def begin(self, expert: str) -> int:
        """A run's turn begins: the step after which it pauses, 0 where it has not started yet."""
        self._began = self._clock()
        return self._step[expert] + LEAST_STEPS if expert in self._step else 0

    def see(self, expert: str, event: Event) -> None:
        """Learn from an event of the run whose turn it is."""
        if not isinstance(event, StepDone):
            return
        if self._began is None:
            seconds, count = self._seconds.get(expert, (0.0, 0))
            self._seconds[expert] = seconds + event.seconds, count + 1
        elif expert in self._step:
            cost = max(0.0, self._clock() - self._began - self._usual(expert))
            self._costs[expert] = cost
            self.spent += cost
        self._began, self._step[expert] = None, event.step

    def steps_left(self, expert: str) -> int:
        """How many steps the run is still to do until swaps, with that to the other run, take their share at most."""
        costs = [cost for other, cost in self._costs.items() if other != expert] or [*self._costs.values(), 0.0]
        missing = (self.spent + costs[0]) / SHARE_OF_SWAPS - (self._clock() - self._start)
        return math.ceil(missing / max(self._usual(expert), 1e-6)) if missing > 0 else 0

    def _usual(self, expert: str) -> float:
        """Seconds of a usual step of this run."""
        seconds, count = self._seconds.get(expert, (0.0, 0))
        return seconds / max(1, count)
