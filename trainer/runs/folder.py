"""A run on disk: config.json, log.jsonl, step_*/ with safetensors + JSON. No pickle anywhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base import files
from ..base.errors import UserError
from ..base.files import replacing, write_json
from ..base.refusals import in_a_sentence, refused
from .events import Event, to_json
from .lock import RunLock
from .state import Checkpoint, place_of, read_checkpoint, step_of, write_checkpoint

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')

MAX_NAME = 120
"""Bytes of a run's name; a folder's name may have 255 on most systems, and up to 64 of the key follow."""

LOG = "log.jsonl"
"""The file with the run's events, one JSON object in a line."""

METADATA = "lora.json"
"""The file with the metadata of the run's LoRA files."""


def check_name(name: str) -> str:
    """A name that is a legal file name on every system, stripped.

    Raises:
        UserError: empty, "." or "..", or with a character that some system refuses.
    """
    stripped = name.strip()
    unsafe = _UNSAFE.search(stripped)
    if unsafe:
        raise UserError(f"run_name {name!r} has the character {unsafe.group()!r}; use letters, digits, _ and -.")
    if len(stripped.encode()) > MAX_NAME:
        raise UserError(f"run_name has {len(stripped)} characters; choose a shorter one, for example {stripped[:20]}.")
    if not stripped.strip("."):
        raise UserError(f"run_name is {name!r}; give the run a name such as my_lora.")
    if files.is_device(stripped):
        raise UserError(f"run_name {name!r} is the name of a device on Windows; choose another, such as my_{stripped}.")
    return stripped


@dataclass(frozen=True, slots=True)
class Found:
    """What a run is resumed from."""

    checkpoint: Checkpoint | None
    """The newest undamaged one that is not beyond the run's last step; None if there is none."""
    passed_over: tuple[str, ...]
    """Why newer ones could not be used, each in a sentence."""
    lines: list[dict]
    """The events in log.jsonl up to the checkpoint; none without one."""

    @property
    def losses(self) -> list[float]:
        """The finite losses up to the checkpoint."""
        return losses(self.lines, self.checkpoint.step if self.checkpoint else 0)


class RunFolder:
    """One run's folder. Only what is said to write does so; all else may be used while another process trains the run.

    A checkpoint is written to a temporary folder that is then renamed, so that it is complete or absent; `state.json`
    holds the sizes and checksums of its files, so that later damage is detected.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = path / LOG

    def write_config(self, name: str, config: Mapping) -> None:
        """Write config.json, which is what makes the folder a run."""
        with writing(self.path):
            write_json(self.path / "config.json", {"run_name": name, **config})

    def clean(self) -> None:
        """Remove what a killed process has left half written."""
        files.sweep(self.path)

    def log(self, event: Event) -> None:
        """Append one line; other processes that read the log see it when this returns."""
        with writing(self.path), files.patiently(
                lambda: self._log.open("a", encoding="utf-8", newline="\n")) as file:
            file.write(json.dumps(to_json(event)) + "\n")

    def logged(self) -> list[dict]:
        """The events of all complete lines of the log; a killed process may have left the last one incomplete."""
        return [line for line in map(_read_line, self._lines()) if line]

    def rewind(self, step: int) -> None:
        """Cut the log back to a checkpoint: what follows is trained and logged again. 0 = to the beginning.

        So the log, TensorBoard's and the page have each step once, whenever a run was killed.
        """
        kept = [line for line in self._lines() if (read := _read_line(line)) and 0 < step >= read["step"]]
        content = b"".join(line + b"\n" for line in kept)
        with writing(self.path):
            if self._log.is_file() and self._log.stat().st_size != len(content):
                with replacing(self._log) as temporary:
                    temporary.write_bytes(content)

    def sync_log(self) -> None:
        """The log is on the disk when this returns, also after a power cut."""
        with writing(self.path):
            files.sync(self._log)

    def describe(self, origin: Mapping, workflow: Mapping) -> None:
        """Write where this run came from, for the list of runs: origin.json, workflow.json."""
        with writing(self.path):
            write_json(self.path / "origin.json", origin)
            if any(workflow.values()):
                write_json(self.path / "workflow.json", workflow)

    def keep_metadata(self, metadata: Mapping[str, str]) -> None:
        """Write the metadata of the run's LoRA files, so that any checkpoint can be saved as one."""
        with writing(self.path):
            write_json(self.path / METADATA, metadata)

    def resume(self, most: int) -> Found:
        """The newest usable checkpoint of at most so many steps, and the log up to it; each is read once."""
        checkpoint, faults = self.newest(most)
        step = checkpoint.step if checkpoint else 0
        return Found(checkpoint, tuple(faults), [line for line in self.logged() if 0 < step >= line["step"]])

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, damaged or not, ascending."""
        found = (step_of(path) for path in self.path.glob("step_*"))
        return sorted(step for step in found if step is not None)

    def save(self, step: int, adapter: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Write step_<step>/ atomically.

        Args:
            adapter: the weights to use.
            state: all that is needed to resume.

        Raises:
            UserError: the disk is full or cannot be written to; earlier checkpoints are as they were.
        """
        return write_checkpoint(self.path, Checkpoint(step, dict(adapter), state))

    def newest(self, most: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint of at most so many steps, and why newer ones could not be used."""
        faults = []
        for step in reversed([step for step in self.steps() if most is None or step <= most]):
            try:
                return self.load(step), faults
            except UserError as error:
                faults.append(str(error))
        return None, faults

    def load(self, step: int) -> Checkpoint:
        """One checkpoint.

        Raises:
            UserError: a file of it is missing, truncated or foreign.
        """
        return read_checkpoint(self.path, step)

    def mark_best(self, step: int, loss: float, learned: float = math.nan) -> None:
        """Write which checkpoint is the best on the held-out files, into best.json; nan is unknown."""
        known = {"learned": learned} if math.isfinite(learned) else {}
        with writing(self.path):
            write_json(self.path / "best.json", {"step": step, "loss": loss, **known, "folder": self._place(step).name})

    def tidy(self, step: int, keep_last: int, best_step: int, is_planned: Callable[[int], bool]) -> None:
        """Delete checkpoints before `step`, except the best and the newest `keep_last`.

        Those that the user has planned are kept in the first place: of the others, which are written so that a crash
        costs little, only as many stay as there is room for. Those beyond `step` stay: they are damaged.
        """
        before = sorted((each for each in self.steps() if each < step), key=lambda each: (is_planned(each), each))
        for each in before[:max(0, len(before) - (keep_last - 1))]:
            if each != best_step:
                with suppress(OSError):  # what a program holds stays whole, until the next time
                    files.delete(self._place(each), seconds=0.5)

    def _lines(self) -> list[bytes]:
        """The complete lines of the log."""
        return files.read_bytes(self._log).split(b"\n")[:-1] if self._log.is_file() else []

    def _place(self, step: int) -> Path:
        return self.path / place_of(step)


def losses(lines: Iterable[dict], most: int) -> list[float]:
    """The finite losses of steps 1 to `most`, from the lines of a log."""
    return [line["loss"] for line in lines
            if line["event"] == "StepDone" and line["step"] <= most and line["loss"] is not None]


def delete_run(path: Path) -> None:
    """Delete a run's folder. It is renamed first, so that it disappears as a whole or not at all.

    Raises:
        UserError: there is none, it is being trained, or the file system refuses, for example because another program
            has a file open.
    """
    if not path.is_dir():
        raise UserError(f"There is no run {path.name} (any more); open the list of runs again.")
    files.sweep(path.parent)  # what is left of runs that could not be deleted as a whole
    lock = RunLock(path)
    with writing(path):
        holder = lock.acquire()
        lock.release()  # Windows renames no folder with an open file
    if holder is not None:
        raise UserError(f"{path.name} is being trained by {holder}; stop it first.")
    try:
        files.delete(path)
    except OSError as error:
        raise refused(f"{path.name} cannot be deleted", path, error, "delete it again") from None


def _read_line(line: bytes) -> dict | None:
    """The event in a line of the log; None for a line that a power cut or a failing disk has damaged."""
    with suppress(ValueError):
        content = json.loads(line)
        if isinstance(content, dict) and {"event", "step"} <= content.keys():
            return content
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError in the block, which writes to a run's folder, into a UserError."""
    with in_a_sentence("The run's folder cannot be written to", path):
        yield
