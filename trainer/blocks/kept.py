"""What a checkpointed part keeps of its first computation besides its input."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

Value = TypeVar("Value")

ATTENTION = "attention"
"""The result of attention over the video."""
TEXT = "text"
"""Keys and values of the text: few rows, for two products of whole weights."""
HIDDEN = "hidden"
"""LoRA's A x: next to nothing for short sequences, whose kernels take longer to start than to run."""


class Kept:
    """Gives in the second computation what was computed in the first, in the same order.

    Args:
        kinds: what is kept, of the above; the rest is computed again.
    """

    def __init__(self, kinds: Collection[str]) -> None:
        self._kinds = kinds
        self._values: list = []
        self._given: int | None = None

    def keeps(self, kind: str) -> bool:
        """Whether it is kept."""
        return kind in self._kinds

    def of(self, kind: str) -> Callable[[Callable[[], Value]], Value] | None:
        """`self` for one kind; None where that is not kept."""
        return partial(self, kind) if kind in self._kinds else None

    def begin_again(self) -> None:
        """The second computation begins."""
        self._given = 0

    def __call__(self, kind: str, compute: Callable[[], Value]) -> Value:
        """What `compute` gives, or what it gave."""
        if kind not in self._kinds:
            return compute()
        if self._given is None:
            self._values.append(compute())
            return self._values[-1]
        self._given += 1
        value, self._values[self._given - 1] = self._values[self._given - 1], None
        return value


NOTHING = Kept(())
