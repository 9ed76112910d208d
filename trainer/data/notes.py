"""Remarks for the user about a dataset's files, for which no file is left out: each remark once, with its files."""

from __future__ import annotations

from ..base.errors import printable

NAMES = 3
"""Number of files that a note lists by name; the others are counted."""


class Notes:
    """Remarks about files, grouped by their text."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def add(self, name: str, remark: str) -> None:
        """`remark` is a clause that reads on after the name and a colon."""
        self._names.setdefault(remark, {})[name] = None

    def sentences(self) -> tuple[str, ...]:
        """Each remark once, with its files, in the order of their first `add`."""
        return tuple(printable(f"{_listed(list(names))}: {remark}") for remark, names in self._names.items())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
