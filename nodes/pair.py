"""Train Wan LoRA with two models: the experts of Wan2.2 A14B, as a pair of runs (trainer/training/pair.py)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..trainer.base.errors import UserError
from ..trainer.base.switches import kept_switches, own_switches
from ..trainer.encoded.cache import CachedDataset
from ..trainer.lora.file import LoraStateDict
from ..trainer.settings.training import BY_TURNS, ORDERS, TrainConfig
from ..trainer.training import experts
from ..trainer.training.experts import HIGH, LOW
from ..trainer.training.pair import Pair
from ..trainer.training.run import Run
from .backend import paths
from .backend.carried import bare
from .backend.denoiser import ComfyDenoiser
from .backend.fingerprint import of_weights
from .media.previewer import PreviewConfig, Previewer, PreviewSize, is_low_expert, to_pictures_of
from .media.previewer import check as check_previews
from .page.pair_live import PairLive

INPUTS = ("model_low", "order", "continue_from_low")
"""Of Train Wan LoRA, which are no settings of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """One of the two that are trained."""

    model: object
    """A MODEL."""
    file: str = ""
    """The name of the file it was loaded from, "" if unknown."""
    continued: Mapping[str, torch.Tensor] | None = None
    """A LoRA of any trainer to begin with."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of one of the two."""

    lora: LoraStateDict
    losses: list[float]
    """The finite ones of its steps."""
    folder: str


def train(
    pair: Mapping[str, Expert], dataset: CachedDataset, run_name: str, config: TrainConfig, live: PairLive,
    order: str = BY_TURNS, restart: bool = False, previews: PreviewConfig | None = None, attempt: int = 0,
) -> dict[str, Trained]:
    """Train the LoRAs of both experts, or load those of runs that were finished before.

    Args:
        pair: by EXPERTS.
        run_name: the runs are `<run_name>_high` and `<run_name>_low`.
        order: one of ORDERS.
        restart, attempt: as of `Run`, for both.

    Raises:
        UserError: the two cannot be a pair, or one cannot be trained, see `Run`.
    """
    check_order(order)
    check(pair)
    denoisers = {expert: ComfyDenoiser(each.model) for expert, each in pair.items()}
    experts.check_pair(denoisers[HIGH], denoisers[LOW])
    family = denoisers[HIGH].family
    configs = {expert: replace(config, objective=experts.in_numbers(
        experts.of_expert(config.objective, expert), family)) for expert in pair}
    if previews:
        check_previews(previews, denoisers[HIGH])
        _check_shown(previews, pair[HIGH].model)
    switches = kept_switches()
    with ExitStack() as stack:
        # as in nodes/train.py
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(own_switches())
        runs = {}
        for expert, each in pair.items():
            denoisers[expert].compile, denoisers[expert].products = config.memory.compile, config.memory.products
            runs[expert] = stack.enter_context(Run(
                denoisers[expert], dataset, f"{run_name}_{expert}", configs[expert], paths.runs_folder(),
                each.continued, restart, attempt, each.file,
                PreviewSize(previews, denoisers[expert]) if previews else None))
        to_pictures = to_pictures_of(dataset, previews)  # which are decoded once for both
        previewers = {expert: previews and Previewer(
            previews, denoisers[expert], run.folder.path, switches, expert == LOW,
            partial(_so_far, runs[_other(expert)]), denoisers[_other(expert)], to_pictures)
            for expert, run in runs.items()}
        _train(runs, denoisers, live, order, previewers)
        return {expert: Trained(run.lora, run.losses, str(run.folder.path)) for expert, run in runs.items()}


def _train(
    runs: Mapping[str, Run], denoisers: Mapping[str, ComfyDenoiser], live: PairLive, order: str,
    previewers: Mapping[str, Previewer | None],
) -> None:
    for expert, run in runs.items():
        live.describe(expert, run.folder, run.base_model, (*denoisers[expert].notes, *run.notes), run.is_finished)
        for note in run.notes:
            live.say(f"{expert} expert: {note}")
        if run.is_finished:
            live.say(f"{expert} expert: trained before: {run.steps} steps, loaded from {run.folder.path.name}")
    left = {expert: run for expert, run in runs.items() if not run.is_finished}
    if not left:
        return
    waits = len(left) == 2 and order == BY_TURNS
    for expert, run in left.items():
        beside = sum(other.lasting_bytes for other in left.values() if waits and other is not run)
        live.say(f"{expert} expert: {run.memory_plan(previewers[expert], beside).told()}")
        live.describe(expert, run.folder, run.base_model, (*denoisers[expert].notes, *run.notes))
    pair = Pair(left, waits)
    with live.running(left), closing(pair.events(previewers)) as events:
        for expert, event in events:
            live.publish(expert, event)
            pair.stop = live.is_stop_asked()
    for expert, run in left.items():
        if not run.steps:
            live.say(f"{expert} expert: stopped before its first step, so its LoRA changes nothing yet")


def _so_far(run: Run) -> LoraStateDict | None:
    return run.lora_so_far


def _check_shown(previews: PreviewConfig, high) -> None:
    """UserError where previews would show one expert alone, or each in the other's place."""
    if previews.model is not None and previews.model_low is None:
        raise UserError("Preview Settings has a model, but no model_low; connect both experts as you sample them, or "
                        "neither.")
    if is_low_expert(previews, high):
        raise UserError("model of Preview Settings is the low-noise expert of Train Wan LoRA, and model_low the "
                        "high-noise one; swap them.")


def _other(expert: str) -> str:
    return LOW if expert == HIGH else HIGH


def check_order(order: str) -> None:
    """UserError unless it is one of ORDERS."""
    if order not in ORDERS:
        raise UserError(f"order is {order!r}; choose one of {'; '.join(ORDERS)}.")


def check(pair: Mapping[str, Expert]) -> None:
    """UserError where both are the same model, or the names of their files say that they change places."""
    high, low = pair[HIGH].model, pair[LOW].model
    if high.model is low.model or _weights(high) == _weights(low):
        raise UserError("model and model_low hold the same weights; connect the high-noise expert to model and the "
                        "low-noise one to model_low.")
    experts.check_names({expert: each.file for expert, each in pair.items()})


def _weights(model) -> str:
    with bare(model):
        return of_weights(model)
