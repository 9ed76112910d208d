"""How often a run is shown, and ComfyUI's progress bar of a node for all the runs that it trains."""

from __future__ import annotations

import comfy.utils

SECONDS_BETWEEN_BARS = 1.0
"""Between updates of ComfyUI's progress bar; for each the page redraws its whole graph."""


class Turn:
    """Limits how often something happens: once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._due = seconds, 0.0

    def has_come(self, now: float, is_last: bool) -> bool:
        """Whether it may happen at time `now`, in seconds; the last time it always may."""
        if now < self._due and not is_last:
            return False
        self._due = now + self._seconds
        return True


class Bar:
    """The progress bar, and the time that is left.

    Args:
        hidden: the node's hidden inputs; None where there is no node.
        runs: how many are trained; those that have not begun are taken for as long as the others.
    """

    def __init__(self, hidden, runs: int = 1) -> None:
        self._node = hidden and hidden.unique_id
        self.runs = runs
        self._turn = Turn(SECONDS_BETWEEN_BARS)
        self._bar: comfy.utils.ProgressBar | None = None
        self._done: dict[str, tuple[int, int, float]] = {}

    def start(self, run: str, step: int, total_steps: int) -> None:
        """A run goes on after this step."""
        self._done[run] = step, total_steps, 0.0
        self._bar = self._bar or comfy.utils.ProgressBar(self._total, node_id=self._node)

    def show(self, run: str, step: int, total_steps: int, pace: float, now: float) -> None:
        """A run has done a step, at time `now`; `pace` is the seconds between steps."""
        self._done[run] = step, total_steps, pace
        if self._turn.has_come(now, step == total_steps):
            self._bar.update_absolute(sum(step for step, _, _ in self._done.values()), self._total)

    @property
    def seconds_left(self) -> float:
        """Of all runs, those that have not begun at the pace of the others."""
        known = [pace for _, _, pace in self._done.values() if pace]
        usual = sum(known) / max(1, len(known))
        left = sum((total - step) * (pace or usual) for step, total, pace in self._done.values())
        return left + (self._total - sum(total for _, total, _ in self._done.values())) * usual

    @property
    def _total(self) -> int:
        totals = [total for _, total, _ in self._done.values()]
        return sum(totals) + (self.runs - len(totals)) * max(totals)
