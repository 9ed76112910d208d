"""What an adapter does to the model: how far it has brought it to held-out files, and moved it where it is not called.

No further model is needed, since the adapter can be switched off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import Batch, read_batch
from ..encoded.cache import CachedSample, Visit
from ..model.backend import Denoiser
from . import objective
from .ranks import ALONE, Ranks

TOP_LEVELS = (0.9, 1.0)
"""Noise levels t at which what was learned is measured: there the prediction shows what the model would draw at all.
The lower t, the more it shows how exactly this very picture is continued (docs/learning.md)."""

DRIFT_LEVELS = (0.2, 0.5, 0.8)
"""Noise levels t at which drift is measured."""

MOST_SAMPLES = 4
"""Files it is measured on at most, so that it costs 4 x 3 x 2 forward passes and no more."""


def learned(
    denoiser: Denoiser, adapter: Adapter, samples: Sequence[CachedSample], levels: Sequence[float] = TOP_LEVELS,
    ranks: Ranks = ALONE,
) -> float:
    """The share of the way from the model alone to the files that the adapter has gone, with the trigger word.

    The mean over the levels of sum <v - v0, y - v0> / sum |y - v0|^2, sums over the files, with v the velocity with the
    adapter, v0 without, and y = noise - x0: the projection of what the adapter changes on what is missing. 0 is none of
    it, 1 all, below 0 away from it; what the adapter changes across that way does not count against it. By losses it is
    (L0 - L + D) / (2 L0), D the mean square of v - v0. Noise and weights are those of `evaluate.held_out_loss`, and it
    changes neither weights nor random numbers. Only inside `Denoiser.attached`.

    Returns:
        nan where nothing is missing, or the model predicts no number.
    """
    measured = ranks.measured(samples, lambda sample: torch.stack(
        [_gone(denoiser, adapter, sample, level) for level in levels]))
    gone, whole = measured.sum(0).unbind(-1)
    return (gone / whole).mean().item()


def drift(
    denoiser: Denoiser, adapter: Adapter, samples: Sequence[CachedSample], levels: Sequence[float] = DRIFT_LEVELS,
    ranks: Ranks = ALONE,
) -> float | None:
    """How far the adapter moves the velocity on prompts without the trigger word, relative to that of the model alone.

    sqrt(sum |v_adapter - v_base|^2 / sum |v_base|^2), each square the mean over the latent: 0 is the model as it was, 1
    as far from it as from predicting nothing. It is a function of the model, the adapter and the samples alone, by the
    noise of `evaluate.held_out_loss`, and changes neither weights nor random numbers. Prior captions are taken in turn,
    so that few samples see each of them. Frames that the model is given are left out. Only inside `Denoiser.attached`.

    Args:
        samples: of those that have prior captions MOST_SAMPLES are taken, by the content of their latents.

    Returns:
        None where no sample has prior captions; nan where the model predicts nothing or no number.
    """
    taken = sorted((sample for sample in samples if sample.prior_captions), key=_key)[:MOST_SAMPLES]
    if not taken:
        return None
    measured = ranks.measured(list(enumerate(taken)), lambda numbered: torch.stack(
        [_moved(denoiser, adapter, numbered[1].prior_visit(number), level)
         for number, level in enumerate(levels, numbered[0])]))
    moved, base = measured.flatten(0, 1).sum(0).tolist()
    return math.sqrt(moved / base) if base else math.nan


def _key(sample: CachedSample) -> str:
    return sample.latent_paths[0].stem


def _gone(denoiser: Denoiser, adapter: Adapter, sample: CachedSample, level: float) -> torch.Tensor:
    """(2,): of a file the mean of <v - v0, y - v0> and that of |y - v0|^2, on the device."""
    visit = sample.visit(0)
    batch, noise_BCFHW = _noised(denoiser, visit)
    velocity_BCFHW, base_BCFHW, open_B1F11 = _velocities(denoiser, adapter, batch, noise_BCFHW, level)
    missing_BCFHW = noise_BCFHW - batch.latent_BCFHW - base_BCFHW
    weight_B1FHW = objective.shown(open_B1F11, batch.mask_B11HW)
    return torch.cat([objective.mean(change_BCFHW * missing_BCFHW, weight_B1FHW)
                      for change_BCFHW in (velocity_BCFHW - base_BCFHW, missing_BCFHW)])


def _moved(denoiser: Denoiser, adapter: Adapter, visit: Visit, level: float) -> torch.Tensor:
    """(2,): the mean squares of how far the velocity moved and of the model's own, on the device."""
    velocity_BCFHW, base_BCFHW, open_B1F11 = _velocities(denoiser, adapter, *_noised(denoiser, visit), level)
    return torch.cat([objective.mean(each.square(), open_B1F11) for each in (velocity_BCFHW - base_BCFHW, base_BCFHW)])


def _noised(denoiser: Denoiser, visit: Visit) -> tuple[Batch, torch.Tensor]:
    """The batch of one sample, ready on the device, and its own noise_BCFHW."""
    batch = read_batch([visit], denoiser.family.conditions)
    conditions = denoiser.prepared(batch.conditions, batch.latent_BCFHW.shape[2:])
    batch = replace(batch, conditions=conditions).to(denoiser.device)
    return batch, objective.sample_noise(batch.latent_BCFHW, objective.generator(visit.latent_path.stem))


def _velocities(
    denoiser: Denoiser, adapter: Adapter, batch: Batch, noise_BCFHW: torch.Tensor, level: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(velocity_BCFHW with the adapter, the same without, open_B1F11 of `objective.noised`)."""
    t_B = torch.tensor([level], device=denoiser.device)
    x_BCFHW, open_B1F11 = objective.noised(batch.latent_BCFHW, noise_BCFHW, t_B, batch.conditions)
    velocities = []
    for state in (nullcontext(), adapter.switched_off()):
        with state, denoiser.training(), torch.no_grad():
            velocities.append(denoiser.velocity(x_BCFHW, t_B, batch.conditions))
    return *velocities, open_B1F11
