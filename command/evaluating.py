"""`wantune eval`: the held-out loss, what was learned and the drift of LoRAs, as a run measures them on its way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..trainer.base.errors import UserError
from ..trainer.base.switches import own_switches
from ..trainer.encoded.cache import CachedDataset
from ..trainer.memory.plan import Plan
from ..trainer.model.backend import Denoiser
from ..trainer.runs.checkpoints import checkpoints
from ..trainer.settings.training import ObjectiveConfig
from ..trainer.training import evaluate as measuring
from ..trainer.training import experts, meters
from ..trainer.training.suited import suited
from . import data, given, worn
from .engine import Engine
from .terminal import Terminal
from .worn import Worn


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one LoRA."""

    name: str
    loss: float
    base_loss: float
    learned: float
    drift: float | None
    levels: tuple[tuple[float, float], ...]
    """(noise level, mean loss) each."""


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure, and print a table."""
    terminal = Terminal()
    asked, folder = given.of_source(arguments, arguments.source)
    settings = asked.settings
    if folder is None and not arguments.lora:
        raise UserError("Nothing is given to measure; give a run, or LoRA files with --lora.")
    cache = data.cache_folder(arguments)
    engine = Engine(settings.models, cache, terminal.say)
    engine.path("model")  # that it is missing is said before anything is encoded
    dataset = asked.dataset() or data.encoded(settings, cache, engine, terminal)
    if not dataset.held_out:
        raise UserError("No files are held out to measure on; set validation_items of load_dataset to 1 or more "
                        "(for a run that was trained on all of them, to see it on what it knows).")
    denoiser = engine.denoiser("model", asked.base_id("model"))
    with own_switches():
        dataset, notes = suited(denoiser, dataset)
        for note in notes:
            terminal.say(note)
        objective = experts.in_numbers(settings.train.objective, denoiser.family)
        found = list(_measured(_loras(arguments, folder, denoiser), denoiser, dataset, objective, terminal))
    print(_as_json(found) if arguments.json else _as_table(found))
    return 0


def _loras(arguments: argparse.Namespace, folder: Path | None, denoiser: Denoiser) -> Iterator[Worn]:
    for path in arguments.lora:
        yield worn.of_file(path, denoiser)
    if folder is not None and not arguments.lora:
        known = checkpoints(folder)
        for step in known.some(arguments.checkpoints):
            yield worn.of_run(folder, step, known.label(step))


def _measured(
    loras: Iterator[Worn], denoiser: Denoiser, dataset: CachedDataset, objective: ObjectiveConfig, terminal: Terminal
) -> Iterator[Measured]:
    levels = measuring.levels_of(objective)
    base: dict[float, float] | None = None
    for lora in loras:
        adapter = lora.adapter(denoiser)
        terminal.say(f"measuring {lora.name} on {len(dataset.held_out)} files")
        with denoiser.attached(adapter, denoiser.linears(), Plan(), 0):
            if base is None:
                with adapter.switched_off():
                    base = measuring.held_out_loss(denoiser, dataset.held_out, levels)
            losses = measuring.held_out_loss(denoiser, dataset.held_out, levels)
            learned = meters.learned(denoiser, adapter, dataset.held_out,
                                     measuring.levels_of(objective, meters.TOP_LEVELS))
            drift = meters.drift(denoiser, adapter, dataset.held_out,
                                 measuring.levels_of(objective, meters.DRIFT_LEVELS))
        yield Measured(lora.name, _mean(losses), _mean(base), learned, drift, tuple(losses.items()))


def _mean(losses: dict[float, float]) -> float:
    return sum(losses.values()) / len(losses)


def _as_table(found: list[Measured]) -> str:
    rows = [("", "held-out loss", "learned", "drift"), ("without a LoRA", f"{found[0].base_loss:.4f}", "", "")]
    rows += [(each.name, f"{each.loss:.4f}", f"{each.learned:.4f}", "" if each.drift is None else f"{each.drift:.4f}")
             for each in found]
    width = max(len(row[0]) for row in rows)
    return "\n".join("  ".join((row[0].ljust(width), *(cell.rjust(13) for cell in row[1:]))).rstrip() for row in rows)


def _as_json(found: list[Measured]) -> str:
    return json.dumps([{"name": each.name, "loss": each.loss, "base_loss": each.base_loss, "learned": each.learned,
                        "drift": each.drift, "levels": each.levels} for each in found], indent=1)
