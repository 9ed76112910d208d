"""Which folder a run has. Nothing here deletes or overwrites a run: what would, gets a folder of its own.

A run that is begun anew is a further attempt beside the former ones. And where fewer steps are asked for than an
attempt has done, and it has no checkpoint of just that step, they are trained in a folder beside it, which begins as a
copy of the attempt at its last checkpoint before.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..base.errors import UserError
from ..base.files import read_bytes, replacing
from .folder import LOG, Found, RunFolder, check_name, writing
from .lock import RunLock
from .state import place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A run's folder."""

    path: Path
    key: str
    number: int = 1
    """Counted from 1; each time a run is begun anew is one more."""
    cut: int = 0
    """The number of steps of a run that was cut short beside a longer one; else 0."""

    @property
    def config(self) -> dict:
        """What tells this attempt from others of the same run, for config.json."""
        return {"key": self.key, "attempt": self.number, "cut": self.cut}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The run that is asked for."""

    name: str
    keys: tuple[str, ...]
    """The key of a new run, then those under which earlier versions kept the same one."""
    config: Mapping
    """Of config.json: all settings."""
    attempt: int
    """The number of the attempt, which is made if there is none; 0 = the newest."""
    restart: bool
    """Where `attempt` is 0: the newest attempt but not the first, so that the same again goes on with it."""
    total_steps: int
    is_length_fixed: bool
    """Whether a run of another length is another run, though earlier versions did not tell them apart."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The folder of a run, and what it is resumed from."""

    folder: RunFolder
    key: str
    found: Found
    lock: RunLock | None
    """Held by the caller from now on; None if nothing is left to train, and then nothing was written."""


def attempts(root: Path, key: str) -> list[Attempt]:
    """All folders of the run with this key, whatever their names."""
    folders = (path for path in sorted(root.glob(f"*-{key[:8]}*")) if path.suffix != ".tmp")  # that is being deleted
    found = map(_attempt, folders)
    return [attempt for attempt in found if attempt is not None and attempt.key == key]


def open_run(root: Path, wanted: Wanted, is_over: Callable[[Found], bool]) -> Opened:
    """The folder in which the run goes on, locked; or in which it has ended.

    Args:
        root: the folder of all runs.
        is_over: whether nothing is left to train after what was found.

    Raises:
        UserError: another process trains it, or its folder cannot be written to.
    """
    return _open(_choose(root, wanted), wanted, is_over)


def _open(
    attempt: Attempt, wanted: Wanted, is_over: Callable[[Found], bool], longer: RunFolder | None = None
) -> Opened:
    folder = RunFolder(attempt.path)
    lock = RunLock(folder.path)
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        holder = lock.acquire()
    try:
        if longer is not None and holder is None and not folder.logged():
            folder.write_config(wanted.name, {**attempt.config, **wanted.config})
            _copy(longer, folder, wanted.total_steps)
        found = folder.resume(wanted.total_steps)
        if is_over(found):
            lock.release()
            return Opened(folder, attempt.key, found, None)
        if longer is None and max(folder.steps(), default=0) > wanted.total_steps:
            lock.release()
            name = f"{folder.path.name}-{wanted.total_steps}steps"
            cut = replace(attempt, path=folder.path.with_name(name), cut=wanted.total_steps)
            return _open(cut, wanted, is_over, folder)
        if holder is not None:
            raise UserError(f"{folder.path.name} is being trained by {holder}; wait for its end, or stop it there. "
                            "What it has saved can be used with Load Run LoRA meanwhile.")
        folder.clean()
        folder.write_config(wanted.name, {**attempt.config, **wanted.config})
    except BaseException:
        lock.release()
        raise
    return Opened(folder, attempt.key, found, lock)


def _copy(longer: RunFolder, folder: RunFolder, most: int) -> None:
    """Fill a new folder with a longer run as it was at its last checkpoint of at most so many steps."""
    checkpoint = longer.newest(most)[0]
    if checkpoint is None:
        return
    judge = checkpoint.state["judge"]
    best = judge["best_step"]
    with writing(folder.path):
        for name in {place_of(checkpoint.step), place_of(best), "samples"}:
            if (longer.path / name).is_dir():
                shutil.copytree(longer.path / name, folder.path / name, dirs_exist_ok=True)
        if best in folder.steps():
            folder.mark_best(best, judge["best_loss"], judge.get("best_learned", math.nan))
        # the log last: while there is none, what was interrupted here is done again
        with replacing(folder.path / LOG) as temporary:
            shutil.copyfile(longer.path / LOG, temporary)
        folder.rewind(checkpoint.step)


def _choose(root: Path, wanted: Wanted) -> Attempt:
    """The existing attempt that is asked for, and of its folders the one that needs the fewest further steps."""
    known = [attempt for key in wanted.keys for attempt in attempts(root, key)]
    if wanted.is_length_fixed:
        known = [attempt for attempt in known if attempt.key == wanted.keys[0]
                 or _lengths(attempt.path) == {wanted.total_steps}]
    newest = max((attempt.number for attempt in known), default=0)
    number = wanted.attempt or max(newest, 2 if wanted.restart else 1)

    def done(attempt: Attempt) -> tuple[int, bool]:
        steps = [step for step in RunFolder(attempt.path).steps() if step <= wanted.total_steps]
        return max(steps, default=0), attempt.cut == wanted.total_steps

    those = [attempt for attempt in known if attempt.number == number]
    return max(those, key=done) if those else _new(root, check_name(wanted.name), wanted.keys[0], number)


def _lengths(path: Path) -> set[int]:
    """The numbers of steps that were asked of a run."""
    return {line["total_steps"] for line in RunFolder(path).logged() if line["event"] == "Started"}


def _new(root: Path, name: str, key: str, number: int) -> Attempt:
    """A folder for a new run; its name has the whole key if another run has the same first 8 digits."""
    suffix = f"-{number}" if number > 1 else ""
    path = root / f"{name}-{key[:8]}{suffix}"
    taken = _attempt(path)
    if taken is not None and taken.key != key:
        path = root / f"{name}-{key}{suffix}"
    return Attempt(path=path, key=key, number=number)


def _attempt(path: Path) -> Attempt | None:
    """The attempt that a folder holds; None if it holds none."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        config = json.loads(read_bytes(path / "config.json"))
        key = config.get("key")
        if isinstance(key, str):
            return Attempt(path=path, key=key, number=int(config.get("attempt", 1)), cut=int(config.get("cut", 0)))
    return None
