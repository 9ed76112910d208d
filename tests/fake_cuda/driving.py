"""Drives the project's own path, from a cache to optimizer steps, and looks at it from outside."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import torch

from wantune.nodes.backend import denoiser as backend
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded import cache, store
from wantune.trainer.memory.choice import Choice, Needs, Space
from wantune.trainer.memory.plan import EVERYTHING
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig
from wantune.trainer.training import loop, memory
from wantune.trainer.training.run import Run

from . import compiled
from .aimdo import Aimdo
from .card import GIB, Card
from .counting import Step


class _Measured(Exception):
    """The step was measured; no further one is wanted."""


class Driven:
    """One run on a card that is not there.

    Args:
        case: a `measure.Case`.
        share: of the weights that fit on the card beside all else; None where it is as large as the case says.
        aimdo: where it runs with dynamic VRAM.
    """

    def __init__(self, case, card: Card, model, share: float | None, aimdo: Aimdo | None) -> None:
        self._case, self._card, self._model, self._share, self._aimdo = case, card, model, share, aimdo
        self._step = Step()
        self._choice: Choice | None = None
        self._weights = self._outside = 0
        self._adapter = None

    def train(self, folder: Path, number: int) -> None:
        """Train up to the step of this number, which `result` then tells of; counting must be active.

        It lasts until the next one begins: what the loop reads of the step before is part of it.
        """
        config = _settings(self._case, number + 2)
        dataset = _dataset(folder, self._case)
        with ExitStack() as stack:
            # no weight has a value that could be hashed, or is worth a file
            stack.enter_context(patch.object(backend, "fingerprint", lambda *_args, **_options: "without data"))
            stack.enter_context(patch.object(loop.Trainer, "_save", lambda trainer: None))
            train_step = self._watched(loop.Trainer.train_step, number)
            stack.enter_context(patch.object(loop.Trainer, "train_step", train_step))
            if self._share is not None:
                stack.enter_context(patch.object(memory, "choose", self._sized(memory.choose)))
            if self._case.compile:
                pieces = compiled.pieces_of(self._card.counting)
                stack.enter_context(patch.object(backend, "pieces_of", lambda *_args: pieces))
            denoiser = backend.ComfyDenoiser(self._model)
            run = Run(denoiser, dataset, "fake", config, folder / "runs")
            self._choice = run.memory_plan().choice
            with closing(run.events()) as events, suppress(_Measured):
                deque(events, maxlen=0)

    def _watched(self, train_step, number: int):
        def watched(trainer):
            if trainer.step == number:
                self._card.counting.begin()  # what comes now is not looked at
                raise _Measured
            counting, network = self._card.counting, self._model.model.diffusion_model
            self._adapter = trainer.adapter
            self._weights = counting.held(network.parameters())
            self._outside = sum(parameter.nbytes for parameter in network.parameters()
                                if parameter.device.type == "cpu")
            self._step = counting.begin()
            return train_step(trainer)

        return watched

    def _sized(self, choose):
        """`choose`, but on a card where the wanted share of the weights fits beside what training asks for."""
        def sized(needs: Needs, space: Space) -> Choice:
            import comfy.model_management as management

            weights = self._model.model_size()
            cast = replace(needs, model=replace(needs.model, are_cast=True))
            parts = choose(cast, replace(space, free=weights + self._card.total)).parts
            taken = parts.lasting + parts.passing
            room = max(taken + management.extra_reserved_memory(), management.minimum_inference_memory())
            resident = int(self._share * weights)
            self._card.total = int(resident + room + self._card.counting.now)
            return choose(needs, replace(space, free=resident + taken))

        return sized

    def result(self) -> dict:
        """What the last step took. GiB, but for counts."""
        step, aimdo, parts = self._step, self._aimdo, self._choice.parts
        estimate = parts.lasting + parts.passing
        resident = self._weights + (aimdo.inside if aimdo else 0)
        outside = sum(aimdo.outside.values()) if aimdo else self._outside
        needed = step.peak - resident
        by_op = {name: (step.forward[name], step.backward[name], step.kernels[name])
                 for name, _ in (step.forward + step.backward).most_common()}
        found = {
            "kernels": step.kernels.total(), "dispatches": step.dispatches, "waits": step.waits,
            "total": step.peak / GIB, "weights": resident / GIB, "outside": outside / GIB,
            "needed": needed / GIB, "estimate": estimate / GIB, "estimate_of_truth": round(estimate / needed, 3),
            "parts": {name: round(value / GIB, 4) for name, value in asdict(parts).items()},
            "chosen": self._choice.plan.told(self._choice.blocks),
            "weights_in": step.weights_in / GIB, "to_card": step.to_card / GIB, "from_card": step.from_card / GIB,
            "crossings": round(step.weights_in / outside, 3) if outside else 0.0,
            "wrong_device": sorted(
                {str(parameter.device) for parameter in self._adapter.parameters} - {"cuda:0"}),
            "by_op": by_op,
        }
        if aimdo:
            pins = self._model.model.dynamic_pins[self._model.load_device]
            found |= {"pins_left": aimdo.pins_left, "pins_active": pins["active"], "prioritized": aimdo.prioritized}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _settings(case, steps: int) -> TrainConfig:
    return TrainConfig(
        epochs=steps, max_steps=steps, batch_size=case.batch, memory=_pins(case.plan),
        lora=LoraConfig(rank=case.rank, alpha=float(case.rank), kind=case.kind, dropout=case.dropout),
        optimizer=OptimizerConfig(name=case.optimizer),
        validation=ValidationConfig(every_minutes=0, evaluate_epochs=0))


def _pins(plan: str) -> MemoryConfig:
    if plan == "auto":
        return MemoryConfig()
    parts = dict(part.partition("=")[::2] for part in plan.split("+"))
    known = {"block", "branch", "attention", "ram", "whole"}
    if not parts.keys() <= known:
        raise ValueError(f"The plan {plan!r} has parts that are none of {', '.join(sorted(known))}; choose of these.")
    return MemoryConfig(
        whole_blocks=int(parts["whole"] or EVERYTHING) if "whole" in parts else 0,
        segments="branch" if "branch" in parts else "block",
        keep_attention="on" if "attention" in parts else "off", inputs_in_ram="on" if "ram" in parts else "off")


def _dataset(folder: Path, case) -> cache.CachedDataset:
    """A cache with a sample for each place in a batch."""
    size_FHW = tuple(map(int, case.latent.split(",")))
    frames, height, width = size_FHW
    samples = []
    for number in range(case.batch):
        latent, text = (folder / f"{kind}_{number}.safetensors" for kind in ("latent", "text"))
        generator = torch.Generator().manual_seed(number)
        store.write_tensor(latent, torch.randn(WAN21_T2V.latent_channels, *size_FHW, generator=generator))
        store.write_tensor(text, torch.randn(case.text, WAN21_T2V.text_width, generator=generator))
        samples.append(cache.CachedSample(
            name=f"{number}.png", repeats=1, latent_paths=(latent,), captions=({"text": text},), mask_path=None,
            bucket=Bucket(frames=4 * (frames - 1) + 1, height=8 * height, width=8 * width),
            empty_caption={"text": text}, caption_dropout=0.0))
    return cache.CachedDataset(family=WAN21_T2V, samples=tuple(samples), held_out=(), digest="fake", trigger_word="",
                               captions=("a caption",) * case.batch)
