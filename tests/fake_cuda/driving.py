"""Drives the project's own path, from a cache to optimizer steps, and looks at it from outside."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import torch

from wantune.nodes.backend import denoiser as backend
from wantune.nodes.backend import embedding
from wantune.nodes.backend.applied import apply
from wantune.nodes.backend.aside import aside
from wantune.tests.support import wan_models
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.memory.choice import Choice, Needs, Space
from wantune.trainer.memory.plan import EVERYTHING
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from wantune.trainer.training import loop, memory
from wantune.trainer.training.run import Run

from . import compiled
from .aimdo import Aimdo
from .card import GIB, Card
from .counting import Step

CLOSE = 4096
"""Bytes to which the memory of a card is found that has room for a share of the weights."""


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
        size_FHW = tuple(map(int, self._case.latent.split(",")))
        dataset = wan_models.dataset(self._case.family, folder, [size_FHW] * self._case.batch, self._case.text)
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
            if self._case.aside and not trainer.step:  # what is made anew for it is there again at the measured step
                self._step_aside(trainer)
            counting, network = self._card.counting, self._model.model.diffusion_model
            self._adapter = trainer.adapter
            self._weights = counting.held(network.parameters())
            self._outside = sum(parameter.nbytes for parameter in network.parameters()
                                if parameter.device.type == "cpu")
            self._step = counting.begin()
            return train_step(trainer)

        return watched

    def _step_aside(self, trainer: loop.Trainer) -> None:
        """As for a preview: ComfyUI loads the model with the adapter as a LoRA in place of ours, and calls it."""
        import comfy.model_management as management

        lora = lora_file.from_adapter(
            {key: torch.zeros(value.shape) for key, value in trainer.adapter.state_dict().items()}, 1.0)
        family = trainer.denoiser.family
        with aside(trainer.denoiser):
            applied, _ = apply(self._model, lora, 1.0)
            management.load_models_gpu([applied], memory_required=GIB)
            device = applied.load_device
            size_FHW = tuple(map(int, self._case.latent.split(",")))
            module = sys.modules[type(applied.model.diffusion_model).__module__]
            with embedding.on_device(module, device):  # ComfyUI 0.3.75 raises a number to a tensor: no fake device does
                applied.model.apply_model(
                    torch.zeros(1, family.latent_channels, *size_FHW, device=device), torch.zeros(1, device=device),
                    c_crossattn=torch.zeros(1, family.text_length, family.text_width, device=device))

    def _sized(self, choose):
        """`choose`, but on a card where the wanted share of the weights fits beside what training asks for."""
        def sized(needs: Needs, space: Space) -> Choice:
            import comfy.model_management as management

            resident = int(self._share * needs.model.weights)
            low, high = 0, needs.model.weights + self._card.total
            while high - low > CLOSE:
                middle = (low + high) // 2
                with suppress(UserError):
                    if choose(needs, replace(space, free=middle)).parts.weights >= resident:
                        high = middle
                        continue
                low = middle
            choice = choose(needs, replace(space, free=high))
            taken = choice.parts.lasting + choice.parts.passing
            room = max(taken + management.extra_reserved_memory(), management.minimum_inference_memory())
            self._card.total = int(resident + room + self._card.counting.now)
            return choice

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
        optimizer=OptimizerConfig(name=case.optimizer), objective=ObjectiveConfig(preserve=case.preserve),
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
