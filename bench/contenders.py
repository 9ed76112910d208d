"""One contender at a time on the device: ours under a plan, or a rival, set up anew, a few steps, and gone again.

So each has the device to itself, with its own peak; what they share are the weights that ComfyUI has loaded.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..nodes.backend.denoiser import ComfyDenoiser
from ..trainer.base.errors import UserError
from ..trainer.base.out_of_memory import first_line, is_out_of_memory
from ..trainer.encoded.batches import read_batch
from ..trainer.memory.plan import Plan
from . import calibration, card, flops, full_size, plans, rivals
from .cases import RANK, Data, running
from .peers import Given, train_with_core

WARM_UP = 2
"""Steps before the timed ones: the first makes AdamW's moments, and both fill torch's and cuDNN's caches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """How long a contender is timed: up to so many steps, and no new one after so many seconds."""

    steps: int
    seconds: float


@dataclass
class Block:
    """What one contender was measured to need in one turn."""

    seconds: float
    """Of a step."""
    peak: int | None
    """Bytes on the device, weights and all; None on a CPU for all but ours."""
    start_up: float = 0.0
    """Seconds from an opened model in RAM or on the device to the end of the first step."""
    planned: int = 0
    """Bytes that the plan says it needs."""


class OutOfMemory(Exception):
    """A contender does not fit."""


def shape_of(data: Data, denoiser: ComfyDenoiser, model) -> flops.Shape:
    """The sizes that the products of our step depend on."""
    network = model.model.diffusion_model
    batch = read_batch([data.dataset.samples[0].visit(0)], denoiser.family.conditions)
    prepared = denoiser.prepared(batch.conditions, batch.latent_BCFHW.shape[2:])
    return flops.Shape(dim=network.dim, ffn_dim=network.ffn_dim, blocks=len(network.blocks), tokens=data.num_tokens,
                 text_rows=prepared["text"].shape[1], rank=RANK, batch_size=data.batch_size)


def shares(shape: flops.Shape, plan: Plan, seconds: float, rate: float) -> dict[str, float]:
    """Of the device's rate of multiplication, without and with what is computed again."""
    return {"share": round(flops.needed(shape) / seconds / rate, 3),
            "share, with what is computed again": round(
                flops.done(shape, plans.again(plan, shape)) / seconds / rate, 3)}


def ours(data: Data, model, plan: Plan, extent: Extent, **variant: str) -> Block:
    """Whole steps of our node under a plan.

    Args:
        variant: `compiled` or `products` of `running`.

    Raises:
        OutOfMemory, UserError: it does not fit, or it cannot be had here.
    """
    with alone():
        start = time.perf_counter()
        with running(data, model, plan, WARM_UP + 1 + extent.steps, **variant) as run:
            run.step()
            card.synchronize()
            start_up = time.perf_counter() - start
            seconds = _seconds(run.step, WARM_UP - 1, extent)
            on_device = model.loaded_size() or model.model_size()
            needed = plans.planned(run.denoiser, run.adapter.config, data.num_tokens, data.batch_size, plan)
            numbers = sum(parameter.numel() for parameter in run.adapter.parameters)
            peak = card.peak() or on_device + 3 * 4 * numbers + calibration.peak(run.step)
    return Block(seconds=seconds, peak=peak, start_up=start_up, planned=on_device + needed)


def rival(make: Callable[[dict, Given], rivals.Rival], data: Data, model, dtype: torch.dtype, extent: Extent) -> Block:
    """Whole steps of a trainer outside ComfyUI."""
    device = model.load_device
    with alone(), torch.inference_mode(False):
        given = Given(data.dataset.samples[:data.batch_size], device, dtype, folded=False)
        contender = make(full_size.shared(model), given)
        return Block(seconds=_seconds(contender.step, WARM_UP, extent), peak=card.peak())


def makers(musubi: Path | None, weights: str, dtype: torch.dtype) -> dict[str, Callable]:
    """For `rival`, by a name for tables: musubi-tuner where its folder is known, and diffusers.

    Neither trains on scaled fp8 weights, diffusers on no fp8, and musubi-tuner on fp8 in autocast alone.
    """
    found = {}
    has_musubi = musubi and (weights not in full_size.FP8 or weights == "fp8" and dtype != torch.float32)
    for checkpointing in (False, True):
        title = f"gradient checkpointing {'on' if checkpointing else 'off'}"
        if has_musubi:
            found[f"musubi-tuner, {title}"] = lambda state, given, checkpointing=checkpointing: rivals.Musubi(
                musubi, state, given, RANK, checkpointing, dtype)
        if weights not in full_size.FP8:
            found[f"diffusers, {title}"] = lambda state, given, checkpointing=checkpointing: rivals.Diffusers(
                state, given, RANK, checkpointing, dtype)
    return found


def core(data: Data, model, dtype: torch.dtype, checkpointing: bool, extent: Extent) -> Block:
    """Steps of a whole run of ComfyUI's TrainLoraNode, timed from one optimizer step to the next."""
    steps = WARM_UP + min(extent.steps, 4)
    with alone():
        seconds = card.seconds_a_step(lambda: train_with_core(
            model, data.dataset, steps, RANK, checkpointing, data.batch_size,
            "bf16" if dtype == torch.bfloat16 else "fp32"))
        return Block(seconds=seconds, peak=card.peak())


@contextmanager
def alone() -> Iterator[None]:
    """Begin with nothing of the contender before, and raise OutOfMemory for whatever says so."""
    gc.collect()
    card.start_peak()
    try:
        yield
    except full_size.Unfit as error:
        raise OutOfMemory(str(error)) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(first_line(error)) from None
    except UserError as error:
        if "memory" not in str(error):  # what training says of it, and the plan
            raise
        raise OutOfMemory(str(error)) from None


def _seconds(run_step: Callable[[], None], warm_up: int, extent: Extent) -> float:
    """Of one step, in a row of steps without a wait between them, as training runs them."""
    card.seconds_of(run_step, warm_up)
    first = card.seconds_of(run_step)
    times = min(extent.steps - 1, int(extent.seconds / first))
    return card.seconds_of(run_step, times) if times > 0 else first
