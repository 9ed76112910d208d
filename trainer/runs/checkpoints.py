"""A run's checkpoints as LoRAs: listing them, choosing some by text such as "best" or "last 4", loading one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base import files, tensors
from ..base.errors import UserError
from ..lora import file as lora_file
from ..settings.data import SEPARATORS
from ..settings.training import LoraConfig
from .folder import METADATA
from .state import ADAPTER, DAMAGE, checked, place_of, step_of

ALL, BEST, NEWEST = "all", "best", "newest"

_LAST = re.compile(r"(?:last|newest)\s*(\d*)")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run."""

    run: Path
    """The run's folder."""
    steps: tuple[int, ...]
    """Ascending, at least one."""
    best: int | None
    """The best step on the held-out files, as training chose it; None if no files were held out."""

    def one(self, text: str) -> int:
        """The step that "best", "newest" or a number names; "best" of a run without held-out files is the newest.

        Raises:
            UserError: there is no such checkpoint; the message lists the existing ones.
        """
        (wish,) = parse(text, "checkpoint", single=True)
        return self._resolve(wish, "checkpoint")[0]

    def some(self, text: str) -> tuple[int, ...]:
        """The steps that a list such as "100, 200, best", "last 4" or "all" names, ascending, each once.

        Raises:
            UserError: there is no such checkpoint; the message lists the existing ones.
        """
        wishes = parse(text, "checkpoints")
        return tuple(sorted({step for wish in wishes for step in self._resolve(wish, "checkpoints")}))

    def up_to(self, step: int) -> int:
        """The checkpoint of this step, or else the last one before it; where there is none before it, the first."""
        return max((each for each in self.steps if each <= step), default=self.steps[0])

    def label(self, step: int) -> str:
        """A checkpoint's name for the user, such as "step 400 (best)"."""
        return f"step {step} (best)" if step == self.best else f"step {step}"

    def __str__(self) -> str:
        shown = [str(step) + (" (best)" if step == self.best else "") for step in self.steps]
        return ", ".join([*shown[:20], f"... {shown[-1]}"] if len(shown) > 21 else shown)

    def _resolve(self, wish: str | int, name: str) -> tuple[int, ...]:
        if wish == ALL:
            return self.steps
        if wish == BEST:
            return (self.best or self.steps[-1],)
        if wish == NEWEST:
            return self.steps[-1:]
        if isinstance(wish, str):
            return self.steps[-int(_LAST.fullmatch(wish)[1]):]
        if wish not in self.steps:
            raise UserError(f"{name} has {wish}, but {self.run.name} has the checkpoints of the steps {self}; give "
                            "one of these.")
        return (wish,)


def parse(text: str, name: str, single: bool = False) -> tuple[str | int, ...]:
    """The entries of a list of checkpoints: "all", "best", "newest", "last 4", or steps as numbers.

    Args:
        name: the input that holds the list, for the message.
        single: exactly one checkpoint must be named.

    Raises:
        UserError: the list is empty or has another entry.
    """
    parts = [part.strip().lower() for part in SEPARATORS.split(text) if part.strip()]
    if not parts or (single and len(parts) > 1):
        example = "best, newest or a step such as 400" if single else "all, last 4, best, or steps such as 100, 200"
        raise UserError(f"{name} is {text!r}; give {example}.")
    return tuple(_wish(part, name, single) for part in parts)


def _wish(part: str, name: str, single: bool) -> str | int:
    part = part.removeprefix("step").strip(" _")
    last = _LAST.fullmatch(part)
    if part == BEST or (last and not last[1]):
        return BEST if part == BEST else NEWEST
    if part.isdecimal():
        return int(part)
    if not single and (part == ALL or (last and int(last[1]) > 0)):
        return part
    example = "best, newest or a step" if single else "steps, all, last 4, newest or best"
    raise UserError(f"{name} has {part!r}; give {example}.")


def checkpoints(run: Path) -> Checkpoints:
    """The checkpoints in a run's folder.

    Raises:
        UserError: there is none.
    """
    steps = tuple(sorted(step for path in run.glob("step_*") if (step := step_of(path)) is not None))
    if not steps:
        raise UserError(f"{run.name} has no checkpoint yet; train it first.")
    best = _json(run / "best.json").get("step")
    return Checkpoints(run, steps, best if best in steps else None)


def load(run: Path, step: int) -> lora_file.LoraStateDict:
    """The LoRA of one checkpoint, as the node Train Wan LoRA outputs it.

    Raises:
        UserError: the checkpoint is damaged, or config.json is not that of a run.
    """
    settings = _json(run / "config.json").get("lora")
    try:
        config = LoraConfig(**settings)
    except TypeError:
        raise UserError(f"{run.name} has a config.json that is none of a run; give another run.") from None
    return of_adapter(_adapter(run, step), config, _json(run / METADATA) or _told_by_the_settings(run), step)


def of_adapter(
    adapter: Mapping[str, torch.Tensor], config: LoraConfig, metadata: Mapping[str, str], step: int
) -> lora_file.LoraStateDict:
    """An adapter's weights after a step, as the tensors and the metadata of a LoRA file."""
    state = lora_file.from_adapter(adapter, config.file_alpha)
    return lora_file.LoraStateDict(state, {**metadata, "ss_steps": str(step), "wantune.step": str(step)})


def _adapter(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The adapter's weights of a checkpoint, without the state that is needed to resume."""
    place = run / place_of(step)
    try:
        checked(place, step, (ADAPTER,))
        return tensors.read(place / ADAPTER)[0]
    except DAMAGE as error:
        raise UserError(f"{place.name} of {run.name} cannot be used ({error}); choose another checkpoint.") from None


def _told_by_the_settings(run: Path) -> dict[str, str]:
    """Metadata made from config.json, for runs from before lora.json was written."""
    config = _json(run / "config.json")
    name = str(config.pop("run_name", run.name))
    for told_elsewhere in ("key", "attempt", "cut"):
        config.pop(told_elsewhere, None)
    return {"ss_output_name": name, "ss_base_model_version": "wan2.1", "modelspec.title": name,
            "wantune.config": json.dumps(config)}


def _json(path: Path) -> dict:
    with suppress(OSError, ValueError):
        content = json.loads(files.read_bytes(path))
        if isinstance(content, dict):
            return content
    return {}
