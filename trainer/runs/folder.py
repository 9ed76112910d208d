"""A run on disk: config.json, log.jsonl, step_*/ with safetensors + JSON. No pickle anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.errors import UserError
from ..base.files import replacing, write_json
from .events import Event, to_json
from .state import Checkpoint, place_of, read_checkpoint, step_of, write_checkpoint

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')

MAX_NAME = 120
"""Bytes of a run's name; a folder's name may have 255 on most systems, and up to 64 of the key follow."""

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
    return stripped


@dataclass(frozen=True, slots=True)
class Found:
    """What a run is resumed from."""

    checkpoint: Checkpoint | None
    """The newest undamaged one that is not beyond the run's last step; None if there is none."""
    passed_over: tuple[str, ...]
    """Why newer ones could not be used, each in a sentence."""
    lines: list[dict]
    """The events in log.jsonl."""

    @property
    def losses(self) -> list[float]:
        """The finite losses up to the checkpoint."""
        return losses(self.lines, self.checkpoint.step if self.checkpoint else 0)


class RunFolder:
    """One run: `<root>/<name>-<first 8 digits of its key>/`.

    A checkpoint is written to a temporary folder that is then renamed, so that it is complete or absent; `state.json`
    holds the sizes and checksums of its files, so that later damage is detected.
    """

    def __init__(self, root: Path, name: str, key: str, config: Mapping) -> None:
        self.path = _known_as(root, key) or _new(root, check_name(name), key)
        with _in_a_sentence(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob("*.tmp"):  # of a killed process
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
            write_json(self.path / "config.json", {"run_name": name, "key": key, **config})
        self._log = self.path / "log.jsonl"

    def restart(self) -> None:
        """Delete the checkpoints, previews and log."""
        for path in (*self.path.glob("step_*"), self.path / "samples"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self._log, self.path / "best.json"):
            path.unlink(missing_ok=True)

    def log(self, event: Event) -> None:
        """Append one line; other processes that read the log see it when this returns."""
        with _in_a_sentence(self.path), self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(event)) + "\n")

    def logged(self) -> list[dict]:
        """The events of all complete lines of the log; a last line that a killed process left incomplete is removed."""
        if not self._log.is_file():
            return []
        lines = self._log.read_bytes().split(b"\n")
        if lines[-1]:
            with replacing(self._log) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
        return [line for line in map(_read_line, lines[:-1]) if line]

    def describe(self, origin: Mapping, workflow: Mapping) -> None:
        """Write where this run came from, for the list of runs: origin.json, workflow.json."""
        with _in_a_sentence(self.path):
            write_json(self.path / "origin.json", origin)
            if any(workflow.values()):
                write_json(self.path / "workflow.json", workflow)

    def keep_metadata(self, metadata: Mapping[str, str]) -> None:
        """Write the metadata of the run's LoRA files, so that any checkpoint can be saved as one."""
        with _in_a_sentence(self.path):
            write_json(self.path / METADATA, metadata)

    def resume(self, most: int) -> Found:
        """The newest usable checkpoint of at most so many steps, and the log; each is read once."""
        checkpoint, faults = self.newest(most)
        return Found(checkpoint, tuple(faults), self.logged())

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

    def mark_best(self, step: int, loss: float) -> None:
        """Write which checkpoint is the best on the held-out files, into best.json."""
        with _in_a_sentence(self.path):
            write_json(self.path / "best.json", {"step": step, "loss": loss, "folder": self._place(step).name})

    def tidy(self, step: int, keep_last: int, best_step: int) -> None:
        """Delete checkpoints of steps up to `step`, except the newest `keep_last` and the best.

        Those beyond `step` stay: they are damaged, or from when the run was longer.
        """
        steps = self.steps()
        done, beyond = [each for each in steps if each <= step], [each for each in steps if each > step]
        self.delete_all_but({best_step, *done[-keep_last:], *beyond})

    def delete_all_but(self, keep: set[int]) -> None:
        """Delete the checkpoints of other steps."""
        for step in self.steps():
            if step not in keep:
                shutil.rmtree(self._place(step), ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.path / place_of(step)


def losses(lines: Iterable[dict], most: int) -> list[float]:
    """The finite losses of steps 1 to `most`, from the lines of a log."""
    return [line["loss"] for line in lines
            if line["event"] == "StepDone" and line["step"] <= most and line["loss"] is not None]


def delete_run(path: Path) -> None:
    """Delete a run's folder. It is renamed first, so that it disappears as a whole or not at all.

    Raises:
        UserError: the file system refuses, for example because another program has a file open.
    """
    with _in_a_sentence(path):
        away = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        os.replace(path, away)
        shutil.rmtree(away)


def _read_line(line: bytes) -> dict | None:
    """The event in a line of the log; None for a line that a power cut or a failing disk has damaged."""
    with suppress(ValueError):
        content = json.loads(line)
        if isinstance(content, dict) and {"event", "step"} <= content.keys():
            return content
    return None


def _known_as(root: Path, key: str) -> Path | None:
    """The existing folder of the run with this key, whatever its name; None if there is none."""
    return next((path for path in sorted(root.glob(f"*-{key[:8]}*")) if _key_of(path) == key), None)


def _new(root: Path, name: str, key: str) -> Path:
    """The folder for a new run; its name has the whole key if another run has the same first 8 digits."""
    path = root / f"{name}-{key[:8]}"
    return path if _key_of(path) in (None, key) else root / f"{name}-{key}"


def _key_of(path: Path) -> str | None:
    """The key of the run in a folder; None if it holds no run."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((path / "config.json").read_text(encoding="utf-8")).get("key")
    return None


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"The run's folder {path} cannot be written to ({error}); free some space on its disk, or "
                        "check its permissions, and queue again.") from None
