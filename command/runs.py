"""Finds runs, and what they were begun with."""

from __future__ import annotations

from pathlib import Path

from ..trainer.base.errors import UserError
from ..trainer.runs.history import is_run

MAX_LISTED = 8
"""Runs that an error message names."""


def folder_of(given: str, runs: Path) -> Path:
    """The folder of a run.

    Args:
        given: its path, or the name of its folder in `runs`, or a beginning of it that only one has.

    Raises:
        UserError: there is no such run.
    """
    for path in (Path(given).expanduser(), runs / given):
        if is_run(path):
            return path.absolute()
    known = [path for path in runs.iterdir() if is_run(path)] if runs.is_dir() else []
    begun = [path for path in known if path.name.startswith(given)]
    if len(begun) == 1:
        return begun[0].absolute()
    shown = sorted(begun or known, key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    what = f"There are {len(begun)} runs" if begun else "There is no run"
    more = f" or one of {len(shown) - MAX_LISTED} others" if len(shown) > MAX_LISTED else ""
    names = ", ".join(path.name for path in shown[:MAX_LISTED]) + more
    raise UserError(f"{what} {given} in {runs}; give {names or 'another folder with --runs'}.")
