"""Summaries and loss curves of runs, read from their folders; writes nothing.

A log of 31,200 steps has 9 MB. So the list of runs reads only both ends of each log, a page that follows one run only
what was appended since, and a folder in which nothing changed is not read again.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..base.files import MOMENT, patiently
from .measured import measured, of_video
from .reading import MAX_REMEMBERED, Reading, event, parsed, texts, version
from .state import INDEX, step_of

EMA_DECAY = 0.98
"""Decay of the moving average that smooths the loss: about the last 1 / (1 - 0.98) = 50 steps count."""

EDGE = 1 << 16
"""Bytes that are read at each end of a log: some 200 steps."""

_NAME = re.compile(r".*-[0-9a-f]{8}.*")
"""Names of runs' folders, which hold the first digits of their key."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in the list of runs."""

    run: str
    """Its folder's name."""
    name: str
    """As the user gave it, with the number of a further attempt, or the length of one that was cut short."""
    key: str
    """The same for all attempts."""
    attempt: int
    base: str
    """The base model in words; "" for runs from before it was recorded."""
    started: float
    """Seconds since 1970."""
    updated: float
    """Seconds since 1970 of the last change of a file."""
    step: int
    total_steps: int
    steps_per_epoch: int
    state: str
    """"done", "stopped", "early stop", "interrupted", also while the run is still training, or "unreadable"."""
    continues_from: int | None
    """The step from which training would resume; None when there is nothing left to train."""
    best: dict | None
    """{"step", "loss"} of the best checkpoint on the held-out files, and "learned" where it is known."""
    base_loss: float | None
    """Held-out loss of the model without the LoRA."""
    thumbnail: str | None
    """Path, within the run's folder, of a strip of frames of the newest preview."""
    preview: dict | None
    """What was measured of that preview, see `measured.of_video`."""
    checkpoints: list[dict]
    """[{"step", "best"}], ascending."""
    has_workflow: bool
    rank: int
    learning_rate: float
    bytes: int
    """On disk."""
    notes: tuple[str, ...] = ()
    """Sentences about how it is trained that the user should know."""
    faults: tuple[str, ...] = ()
    """What of its files is unreadable, each in a sentence."""


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run."""
    return folder.suffix != ".tmp" and "key" in read_json(folder / "config.json")  # .tmp: which is being deleted


def was_run(folder: Path) -> bool:
    """Whether this is the folder of a run, also if its files are damaged."""
    is_named = _NAME.fullmatch(folder.name) and (folder / "config.json").exists()
    return folder.suffix != ".tmp" and bool(is_named or (folder / "log.jsonl").exists() or is_run(folder))


def name_of(folder: Path) -> str:
    """The name that the user gave a run; "" if that cannot be read."""
    name = read_json(folder / "config.json").get("run_name")
    return name.strip() if isinstance(name, str) else ""


def summary(folder: Path) -> Summary:
    """The summary of a run's folder; does not read all of its log."""
    return _summary(folder, tuple(sorted(_versions(folder))))


@lru_cache(MAX_REMEMBERED)
def _summary(folder: Path, _known_by: tuple) -> Summary:
    reading = Reading(folder)
    config = reading.object("config.json")
    if not reading.faults:
        reading.text("config.json", config, "key", "") or reading.blame("config.json", "it has no key")
    is_readable, origin = not reading.faults, reading.object("origin.json")
    lines = _edges(folder / "log.jsonl", reading)
    last = lines[-1] if lines else {}
    counted = [line for line in lines if "total_steps" in line]
    places = {step: path.name for path in folder.glob("step_*") if (step := step_of(path)) and (path / INDEX).is_file()}
    steps = sorted(step for step, place in places.items() if reading.check_whole(f"{place}/{INDEX}"))
    state = last.get("reason", "interrupted") if is_readable else "unreadable"
    best = _best(reading, steps)
    strips = sorted((path.name for path in folder.glob("samples/*.jpg")), key=lambda name: (name[:4] != "base", name))
    files = list(_files(folder))
    return Summary(
        run=folder.name,
        name=_shown(reading.text("config.json", config, "run_name", folder.name), config),
        key=reading.text("config.json", config, "key", ""),
        attempt=int(reading.number("config.json", config, "attempt", 1)),
        base=reading.text("origin.json", origin, "base", ""),
        started=reading.number("origin.json", origin, "started")
        or min((status.st_mtime for status in files), default=0.0),
        updated=max((status.st_mtime for status in files), default=0.0),
        step=next((line["step"] for line in lines if line["event"] == "StepDone"), 0),
        total_steps=counted[-1]["total_steps"] if counted else 0,
        steps_per_epoch=next((line["steps_per_epoch"] for line in reversed(lines) if "steps_per_epoch" in line), 0),
        state=state,
        continues_from=None if state in ("done", "early stop", "unreadable") else max(steps, default=0),
        best=best,
        base_loss=next((line.get("base_loss") for line in lines if line["event"] == "Evaluated"), None),
        thumbnail=f"samples/{strips[-1]}" if strips else None,
        preview=of_video(lines, f"samples/{strips[-1]}") if strips else None,
        checkpoints=[{"step": step, "best": bool(best) and step == best["step"]} for step in steps],
        has_workflow=(folder / "workflow.json").is_file(),
        rank=reading.number("config.json", reading.part("config.json", config, "lora"), "rank"),
        learning_rate=reading.number("config.json", config, "learning_rate"),
        bytes=sum(status.st_size for status in files),
        notes=texts(origin.get("notes")),
        faults=tuple(reading.faults),
    )


@dataclass(slots=True)
class RunLog:
    """The log of one run, read incrementally: `refresh` reads what was appended since the last call."""

    path: Path
    steps: array = field(default_factory=lambda: array("q"))
    losses: array = field(default_factory=lambda: array("d"))
    """nan where the loss was not finite."""
    smooth: array = field(default_factory=lambda: array("d"))
    """The moving average of the loss, after bias correction."""
    learning_rates: array = field(default_factory=lambda: array("d"))
    evaluated: list[dict] = field(default_factory=list)
    previewed: list[dict] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)
    """Sentences about how it went on."""
    ema: float = 0.0
    weight: float = 0.0
    """The bias correction: `ema` is divided by it (Adam, Kingma and Ba, arXiv:1412.6980, section 3)."""
    _offset: int = 0
    _last: bytes = b""

    def refresh(self) -> None:
        """Read the lines that were appended; the whole log if it was deleted and begun again."""
        try:
            with patiently(lambda: self.path.open("rb"), MOMENT) as file:
                file.seek(max(0, self._offset - len(self._last)))
                if file.read(len(self._last)) != self._last:
                    self.__init__(self.path)
                    file.seek(0)
                content = file.read()
        except OSError:
            self.__init__(self.path)
            return
        whole = content[:content.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._last = line
            if content := event(line):  # else it is damaged, as after a power cut
                with suppress(KeyError, TypeError):
                    self._add(content)
        self._offset += len(whole)

    def curve(self, points: int, first: int = 0, last: int = 0) -> dict[str, list]:
        """The curve in at most so many intervals of equally many steps: lists by name.

        `low` and `high` are the smallest and largest loss of an interval; `step`, `smooth` (the smoothed loss) and
        `learning_rate` are those of its last step.

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
            self.evaluated.append({name: line[name] for name in ("step", "loss", "base_loss")} | {
                "learned": line.get("learned"), "is_best": line.get("is_best") is True})
        elif line["event"] == "Previewed":
            self.previewed.append({name: line[name] for name in ("step", "name", "files")} | measured(line))
        elif line["event"] == "Noted" and line["sentence"] not in self.noted:  # each start of a run may say it again
            self.noted.append(line["sentence"])
        elif line["event"] == "StepDone":
            step, rate, loss = line["step"], line["learning_rate"], line["loss"]
            loss = math.nan if loss is None else loss
            if math.isfinite(loss):
                self.ema = EMA_DECAY * self.ema + (1 - EMA_DECAY) * loss
                self.weight = EMA_DECAY * self.weight + (1 - EMA_DECAY)
            self.steps.append(step)
            self.losses.append(loss)
            self.smooth.append(self.ema / self.weight if self.weight else math.nan)
            self.learning_rates.append(rate)


def read_json(path: Path) -> dict:
    """The JSON object in a file, {} where there is none. It is cached: callers must not change it."""
    with suppress(OSError, ValueError):
        content = parsed(path)
        return content if isinstance(content, dict) else {}
    return {}


def _versions(folder: Path) -> Iterator[tuple]:
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):  # a temporary file, gone by now
                yield name, *version(folder / name)


def _best(reading: Reading, steps: list[int]) -> dict | None:
    best = reading.object("best.json")
    keys = ("step", "loss", *best.keys() & {"learned"})
    found = {key: reading.number("best.json", best, key) for key in keys}
    return found if found["step"] in steps else None


def _files(folder: Path) -> Iterator[os.stat_result]:
    """The status of each file below a folder, except those that a training run deletes meanwhile."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield os.stat(os.path.join(place, name))


def _shown(name: str, config: Mapping) -> str:
    number, cut = config.get("attempt", 1), config.get("cut", 0)
    return name + (f" ({number})" if number != 1 else "") + (f", {cut} steps" if cut else "")


def _edges(log: Path, reading: Reading) -> list[dict]:
    """The events at the beginning and at the end of a log, in their order, but only the last of all StepDone events."""
    try:
        with patiently(lambda: log.open("rb"), MOMENT) as file:
            head = file.read(EDGE)
            begin = max(len(head), log.stat().st_size - EDGE)
            file.seek(begin)
            tail = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        reading.blame(log.name, error.strerror)
        return []
    if begin > len(head):
        tail = tail.partition(b"\n")[2]
        head = head[:head.rfind(b"\n") + 1]
    found: list[dict] = []
    is_step_found = False
    lines = (head + tail).split(b"\n")[:-1]
    for line in reversed(lines):
        is_step = b'"StepDone"' in line
        if not (is_step and is_step_found) and (content := event(line)):
            found.append(content)
            is_step_found |= is_step
    if lines and not found:
        reading.blame(log.name, "no line of it is an event")
    return found[::-1]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
