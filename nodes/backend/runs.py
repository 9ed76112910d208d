"""Finds the run in output/wantune, and those of its checkpoints, that the widgets of a node name."""

from __future__ import annotations

import os
from pathlib import Path

from ...trainer.base.errors import UserError
from ...trainer.runs.checkpoints import checkpoints, parse
from ...trainer.runs.history import is_run
from ...trainer.runs.state import INDEX, place_of
from . import paths

MAX_LISTED = 8
"""Runs that an error message names."""


def run_folder(text: str) -> Path:
    """The folder of a run, by its name in output/wantune or by its path.

    Raises:
        UserError: there is no such run, or the path leads elsewhere.
    """
    root = paths.runs_folder()
    given = text.strip().strip('"')
    if not given:
        raise UserError(f"run is empty; give {_known(root)}.")
    # looked up in the listing of the folder, so that no name can lead out of it
    name = os.path.basename(os.path.normpath(given)) if _is_in(given, root) else given
    names = os.listdir(root) if root.is_dir() else []
    folder = root / name
    if name not in names and (os.path.dirname(given) or "\0" in given):
        raise UserError(f"run {given!r} does not lie in {root}; give {_known(root)}.")
    if name not in names or folder.is_symlink() or not is_run(folder):
        raise UserError(f"There is no run {given!r} in {root}; give {_known(root)}.")
    return folder


def check(run: str | None, text: str | None, single: bool = False) -> None:
    """Check a node's widgets before anything runs.

    Args:
        run: of the widget; None if it is linked, so that its value is not known yet.
        text: likewise; names a checkpoint if `single`, else a list of them.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    if text is not None:
        parse(text, "checkpoint" if single else "checkpoints", single=single)
    if run is not None:
        found = checkpoints(run_folder(run))
        if text is not None:
            found.one(text) if single else found.some(text)


def fingerprint_of_checkpoints(run: str | None, text: str | None, single: bool = False) -> str:
    """A key that changes when the widgets name other checkpoints, or one was rewritten; arguments as in `check`."""
    if run is None or text is None:
        return "linked"  # the nodes they are linked to are part of ComfyUI's cache key already
    try:
        found = checkpoints(run_folder(run))
        steps = (found.one(text),) if single else found.some(text)
        stamps = [(found.run / place_of(step) / INDEX).stat().st_mtime_ns for step in steps]
    except (UserError, OSError) as error:
        return str(error)
    return f"{found.run.name} {steps} {stamps} {'' if single else found.best}"


def _is_in(given: str, root: Path) -> bool:
    if "\0" in given or not os.path.isabs(given):
        return False
    return Path(given).parent.resolve() == root.resolve()


def _known(root: Path) -> str:
    """The newest runs, as the part of an error message that says what to give instead."""
    runs = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not runs:
        return "the name of a run once one was trained"
    runs.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    more = f" or one of {len(runs) - MAX_LISTED} others" if len(runs) > MAX_LISTED else ""
    return ", ".join(path.name for path in runs[:MAX_LISTED]) + more
