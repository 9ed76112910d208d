"""Routes with which the page lists, follows, stops and deletes runs."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

from ...trainer.base.errors import UserError
from ...trainer.runs import history, lock
from ...trainer.runs.folder import delete_run
from ...trainer.training.experts import EXPERTS
from ..backend import paths
from . import live, shown
from .asking import Asked, Door, NotFound, is_theirs

MAX_POINTS = 2000
"""Of a curve in one answer; more than a screen is pixels wide."""

MAX_LOGS = 8
"""Logs kept in memory, so that only what was appended to them has to be read."""

_SAMPLE = re.compile(r"samples/\w[\w.-]{0,99}\.(mp4|jpg)", re.ASCII)

_logs: OrderedDict[Path, history.RunLog] = OrderedDict()
"""By the run's folder; used by the one quick thread alone, so there is no lock."""


def register(door: Door) -> None:
    """Add the routes."""
    door.get("/wantune/node", _node)
    door.get("/wantune/runs", _list, quick=False)
    door.get("/wantune/runs/{run}", _one)
    door.get("/wantune/runs/{run}/file", _file)
    door.get("/wantune/runs/{run}/workflow", _workflow)
    door.post("/wantune/runs/{run}/delete", _delete, quick=False)
    door.post("/wantune/stop", _stop)


def _node(asked: Asked) -> dict:
    """What a node showed last, and the run of Train Wan LoRA: as remembered, else the newest run of the name.

    Where it trained two experts, `run` is that of the high-noise one, and `run_low` that of the other.
    """
    found = shown.recall(asked.user, asked.text("workflow", ""), asked.text("node", ""))
    run, low, name = found.get("run"), found.get("run_low"), asked.text("run_name", "").strip()
    if not isinstance(run, str) or _find(run, asked.user) is None:
        run, low = _newest(name, asked.user), None
        if name and run is None:
            run, low = (_newest(f"{name}_{expert}", asked.user) for expert in EXPERTS)
    has_low = isinstance(low, str) and _find(low, asked.user) is not None
    return {"run": run, "shown": found, **({"run_low": low} if has_low else {})}


def _newest(name: str, user: str) -> str | None:
    """The newest run of a name."""
    named = [folder for folder in _folders(user) if name and history.name_of(folder) == name]
    return max(named, key=lambda folder: (folder / "config.json").stat().st_mtime).name if named else None


def _list(asked: Asked) -> dict:
    """Every run, the newest first."""
    found = [_summary(folder) for folder in _folders(asked.user)]
    return {"runs": sorted(found, key=lambda run: run["updated"], reverse=True)}


def _one(asked: Asked) -> dict:
    """One run with its loss curve, previews and current speed."""
    folder = _folder(asked)
    log = _logs.pop(folder, None) or history.RunLog(folder / "log.jsonl")
    _logs[folder] = log
    while len(_logs) > MAX_LOGS:
        _logs.popitem(last=False)
    log.refresh()
    first, last = (asked.number(name, 0, 0, 1 << 53) for name in ("first", "last"))
    current = _current(folder)
    found = _summary(folder)
    return {
        **found,
        "notes": [*found["notes"], *log.noted],
        "curve": log.curve(asked.number("points", 600, 1, MAX_POINTS), first, last),
        "ema": {"value": log.ema, "weight": log.weight},
        "ema_decay": history.EMA_DECAY,
        "held_out": log.evaluated,
        "previews": [each for each in log.previewed if _is_there(folder, each)],
        "now": current.now or None if current and current.run == folder.name else None,
        "is_waiting": bool(current and current.run != folder.name),
        "stopping": bool(current and current.is_stop_asked),
    }


def _file(asked: Asked) -> Path:
    """A file of a run's previews: an mp4, or its strip of frames as jpg."""
    folder, name = _folder(asked), asked.text("name")
    path = folder / name
    # a symbolic link in the folder may lead anywhere
    if not _SAMPLE.fullmatch(name) or not path.is_file() or path.resolve().parent != folder.resolve() / "samples":
        raise NotFound(f"{name!r} is no preview of {folder.name}; ask for the names that the run lists.")
    return path


def _workflow(asked: Asked) -> dict:
    """The graph a run was trained with."""
    folder = _folder(asked)
    found = history.read_json(folder / "workflow.json")
    if not found:
        raise NotFound(f"The graph of {folder.name} was not kept; only runs queued from the page have one.")
    return found


def _delete(asked: Asked) -> dict:
    """Delete a run with all its checkpoints."""
    folder = _folder(asked)
    if _current(folder):
        raise UserError(f"{folder.name} is being trained; stop it first.")
    delete_run(folder)
    return {"deleted": folder.name}


def _stop(asked: Asked) -> dict:
    """End the current run after its current step, save, and go on in the graph with what was learned."""
    run, current = asked.text("run", ""), live.current()
    return {"stopping": current is not None and is_theirs(current.user, asked.user) and live.ask_to_stop(run)}


def _current(folder: Path) -> live.Current | None:
    """The state of a run that is going on; None when it is not."""
    current = live.current()
    return current if current and folder.name in current.runs else None


def _summary(folder: Path) -> dict:
    found = asdict(history.summary(folder))
    if _current(folder) or lock.holder(folder):
        found |= {"state": "running", "continues_from": None}
    return found


def _folder(asked: Asked) -> Path:
    folder = _find(asked.path["run"], asked.user)
    if folder is None:
        raise NotFound(f"There is no run {asked.path['run']!r}; open the list of runs again.")
    return folder


def _find(run: str, user: str) -> Path | None:
    """A run's folder, if it is the user's; looked up in the listing of runs, so that no name can lead out of it."""
    root = paths.runs_folder()
    names = os.listdir(root) if root.is_dir() else []
    return root / run if run in names and _is_run_of(root / run, user) else None


def _folders(user: str) -> list[Path]:
    root = paths.runs_folder()
    return [path for path in root.iterdir() if _is_run_of(path, user)] if root.is_dir() else []


def _is_run_of(path: Path, user: str) -> bool:
    owner = history.read_json(path / "origin.json").get("user")
    return (path.is_dir() and not path.is_symlink() and history.was_run(path)
            and is_theirs(owner if isinstance(owner, str) else None, user))


def _is_there(folder: Path, previewed: dict) -> bool:
    return all((folder / name).is_file() for name in previewed["files"])
