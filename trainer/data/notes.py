"""What the user should know although no file is left out for it: each remark once, with all its files."""

from __future__ import annotations

NAMES = 3
"""Files that a note names; of the others it gives the number."""


class Notes:
    """Remarks about files, gathered by what they say."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def add(self, name: str, remark: str) -> None:
        """`remark` is a clause that reads on after the name and a colon."""
        self._names.setdefault(remark, {})[name] = None

    def sentences(self) -> tuple[str, ...]:
        """Each remark once, in the order in which they came up."""
        return tuple(f"{_listed(list(names))}: {remark}" for remark, names in self._names.items())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
