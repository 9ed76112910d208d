"""Runs as their folders tell them: what there is, how far it came, and the curve of its loss. Reads only.

A log of 31,200 steps has 9 MB, so a list of runs reads the edges of each log alone, whoever follows one run reads what
was added since the last look, and a folder in which nothing changed is not read again.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from .state import INDEX, step_of

EMA_DECAY = 0.98
"""Of the smoothed loss: about the last 50 steps count."""

EDGE = 1 << 16
"""Bytes at each end of a log: some 200 steps."""

MAX_REMEMBERED = 4096
"""Files, and folders, of which is known what they say."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in the list of runs."""

    run: str
    """Its folder's name."""
    name: str
    base: str
    """What the model is, in words; "" for runs of a time when that was not kept."""
    started: float
    """Seconds since 1970."""
    updated: float
    step: int
    total_steps: int
    steps_per_epoch: int
    state: str
    """"done", "stopped", "early stop", or "interrupted", which a run that is going on is as well."""
    continues_from: int | None
    """The step the next run goes on from; None when there is nothing left to train."""
    best: dict | None
    """{"step", "loss"} of the best checkpoint on the held-out files."""
    base_loss: float | None
    """Held-out loss of the model without the LoRA."""
    thumbnail: str | None
    """A strip of frames of the newest preview."""
    checkpoints: list[dict]
    """[{"step", "best"}], ascending."""
    has_workflow: bool
    rank: int
    learning_rate: float
    bytes: int
    """On disk."""


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run."""
    return "key" in read_json(folder / "config.json")


def summary(folder: Path) -> Summary:
    """What a run's folder says of it, without reading all of its log."""
    return _summary(folder, tuple(sorted(_versions(folder))))


@lru_cache(MAX_REMEMBERED)
def _summary(folder: Path, _known_by: tuple) -> Summary:
    config, origin = read_json(folder / "config.json"), read_json(folder / "origin.json")
    lines = _edges(folder / "log.jsonl")
    last = lines[-1] if lines else {}
    counted = [line for line in lines if "total_steps" in line]
    steps = sorted(step for path in folder.glob("step_*") if (step := step_of(path)) and (path / INDEX).is_file())
    total = counted[-1]["total_steps"] if counted else 0
    state = last.get("reason", "interrupted")
    best = _best(folder, steps)
    base_losses = [line["base_loss"] for line in lines if line["event"] == "Evaluated"]
    strips = sorted(path.name for path in folder.glob("samples/*.jpg"))
    strips = [name for name in strips if not name.startswith("base")] or strips
    files = list(_files(folder))
    return Summary(
        run=folder.name,
        name=config.get("run_name", folder.name),
        base=origin.get("base", ""),
        started=origin.get("started") or min((status.st_mtime for status in files), default=0.0),
        updated=max((status.st_mtime for status in files), default=0.0),
        step=next((line["step"] for line in lines if line["event"] == "StepDone"), 0),
        total_steps=total,
        steps_per_epoch=next((line["steps_per_epoch"] for line in reversed(lines) if "steps_per_epoch" in line), 0),
        state=state,
        continues_from=None if state in ("done", "early stop") else max(steps, default=0),
        best=best,
        base_loss=base_losses[0] if base_losses else None,
        thumbnail=f"samples/{strips[-1]}" if strips else None,
        checkpoints=[{"step": step, "best": bool(best) and step == best["step"]} for step in steps],
        has_workflow=(folder / "workflow.json").is_file(),
        rank=config.get("lora", {}).get("rank", 0),
        learning_rate=config.get("learning_rate", 0.0),
        bytes=sum(status.st_size for status in files),
    )


@dataclass(slots=True)
class RunLog:
    """All of one run's log, read on from where the last look ended."""

    path: Path
    steps: array = field(default_factory=lambda: array("q"))
    losses: array = field(default_factory=lambda: array("d"))
    """nan where the loss was not finite."""
    smooth: array = field(default_factory=lambda: array("d"))
    learning_rates: array = field(default_factory=lambda: array("d"))
    evaluated: list[dict] = field(default_factory=list)
    previewed: list[dict] = field(default_factory=list)
    ema: float = 0.0
    weight: float = 0.0
    """Of `ema`: what it is divided by (Kingma and Ba 2014, section 3)."""
    _offset: int = 0
    _last: bytes = b""

    def refresh(self) -> None:
        """Read what was added; all of it anew when the run was begun anew."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self._offset - len(self._last)))
                if file.read(len(self._last)) != self._last:
                    self.__init__(self.path)
                    file.seek(0)
                content = file.read()
        except FileNotFoundError:
            self.__init__(self.path)
            return
        whole = content[:content.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._last = line
            with suppress(ValueError, KeyError, TypeError):  # half a line in the middle, of a power cut
                self._add(json.loads(line))
        self._offset += len(whole)

    def curve(self, points: int, first: int = 0, last: int = 0) -> dict[str, list]:
        """At most so many buckets of equally many steps: their least and largest loss, and the smoothed one.

        Args:
            first, last: the steps to show; 0 for the first and the last there is.
        """
        steps = np.asarray(self.steps)
        begin = int(np.searchsorted(steps, first, "left"))
        end = int(np.searchsorted(steps, last, "right")) if last else len(steps)
        if end <= begin:
            return {"step": [], "low": [], "high": [], "smooth": [], "learning_rate": []}
        edges = np.unique(np.linspace(begin, end, min(points, end - begin) + 1).round().astype(int))
        ends = edges[1:] - 1
        losses = np.asarray(self.losses)[begin:end]
        low, high = (reduce.reduceat(losses, edges[:-1] - begin) for reduce in (np.fmin, np.fmax))
        return {
            "step": steps[ends].tolist(),
            "low": _numbers(low),
            "high": _numbers(high),
            "smooth": _numbers(np.asarray(self.smooth)[ends]),
            "learning_rate": np.asarray(self.learning_rates)[ends].tolist(),
        }

    def _add(self, line: dict) -> None:
        if line["event"] == "Evaluated":
            self.evaluated.append({name: line[name] for name in ("step", "loss", "base_loss")})
        elif line["event"] == "Previewed":
            self.previewed.append({name: line[name] for name in ("step", "name", "files")})
        elif line["event"] == "StepDone":
            loss = math.nan if line["loss"] is None else line["loss"]
            if math.isfinite(loss):
                self.ema = EMA_DECAY * self.ema + (1 - EMA_DECAY) * loss
                self.weight = EMA_DECAY * self.weight + (1 - EMA_DECAY)
            self.steps.append(line["step"])
            self.losses.append(loss)
            self.smooth.append(self.ema / self.weight if self.weight else math.nan)
            self.learning_rates.append(line["learning_rate"])


def to_json(found: Summary) -> dict:
    """As plain data."""
    return asdict(found)


def read_json(path: Path) -> dict:
    """The JSON object in a file, not to be changed; empty where there is none."""
    with suppress(OSError):
        return _read_json(path, _version(path))
    return {}


@lru_cache(MAX_REMEMBERED)
def _read_json(path: Path, _known_by: tuple) -> dict:
    with suppress(ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _versions(folder: Path) -> Iterator[tuple]:
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):  # a temporary file, gone by now
                yield name, *_version(folder / name)


def _version(path: Path) -> tuple[int, ...]:
    """Tells what a file held at two times apart, a folder by what was added to it and removed."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _best(folder: Path, steps: list[int]) -> dict | None:
    best = read_json(folder / "best.json")
    return {"step": best["step"], "loss": best.get("loss")} if best.get("step") in steps else None


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Of each file; a run that goes on deletes old checkpoints meanwhile."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield os.stat(os.path.join(place, name))


def _edges(log: Path) -> list[dict]:
    """The whole lines at the beginning and at the end of a log in their order, but of its steps only the last."""
    try:
        with log.open("rb") as file:
            head = file.read(EDGE)
            begin = max(len(head), log.stat().st_size - EDGE)
            file.seek(begin)
            tail = file.read()
    except OSError:
        return []
    if begin > len(head):
        tail = tail.partition(b"\n")[2]
        head = head[:head.rfind(b"\n") + 1]
    found: list[dict] = []
    is_step_found = False
    for line in reversed((head + tail).split(b"\n")[:-1]):
        is_step = b'"StepDone"' in line
        if is_step and is_step_found:
            continue
        with suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict) and {"event", "step"} <= content.keys():
                found.append(content)
                is_step_found |= is_step
    return found[::-1]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
