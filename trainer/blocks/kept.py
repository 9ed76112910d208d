"""What a checkpointed part keeps of its first computation besides its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


class Kept:
    """Gives in the second computation what was computed in the first, in the same order.

    Args:
        is_on: whether anything is kept; otherwise all is computed again.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._values: list = []
        self._given: int | None = None

    def begin_again(self) -> None:
        """The second computation begins."""
        self._given = 0

    def __call__(self, compute: Callable[[], Value]) -> Value:
        """What `compute` gives, or what it gave."""
        if not self._is_on:
            return compute()
        if self._given is None:
            self._values.append(compute())
            return self._values[-1]
        self._given += 1
        value, self._values[self._given - 1] = self._values[self._given - 1], None
        return value


NOTHING = Kept(is_on=False)
