"""How far the model has moved where the LoRA is not called: measured on held-out files, against the model alone.

It needs no further model, since the adapter can be switched off. Its counterpart, what was learned, is the share of the
base model's loss from pure noise that is gone (`runs.events.share_learned`, measured in `evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import read_batch
from ..encoded.cache import CachedSample
from ..model.backend import Denoiser
from . import objective
from .ranks import ALONE, Ranks

DRIFT_LEVELS = (0.2, 0.5, 0.8)
"""Noise levels t at which drift is measured."""

MOST_SAMPLES = 4
"""Files it is measured on at most, so that it costs 4 x 3 x 2 forward passes and no more."""


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
        list(_squares(denoiser, adapter, numbered[1], numbered[0], levels))))
    moved, base = measured.flatten(0, 1).sum(0).tolist()
    return math.sqrt(moved / base) if base else math.nan


def _key(sample: CachedSample) -> str:
    return sample.latent_paths[0].stem


def _squares(
    denoiser: Denoiser, adapter: Adapter, sample: CachedSample, first: int, levels: Sequence[float]
) -> Iterator[torch.Tensor]:
    """For each level the mean squares (2,) of how far the velocity moved and of the model's own, on the device.

    Args:
        first: number of the prior caption at the first level; the others follow in turn.
    """
    for number, level in enumerate(levels, first):
        visit = sample.prior_visit(number)
        batch = read_batch([visit], denoiser.family.conditions)
        conditions = denoiser.prepared(batch.conditions, batch.latent_BCFHW.shape[2:])
        batch = replace(batch, conditions=conditions).to(denoiser.device)
        noise_BCFHW = objective.sample_noise(batch.latent_BCFHW, objective.generator(visit.latent_path.stem))
        t_B = torch.tensor([level], device=denoiser.device)
        x_BCFHW, open_B1F11 = objective.noised(batch.latent_BCFHW, noise_BCFHW, t_B, batch.conditions)
        velocities = []
        for state in (nullcontext(), adapter.switched_off()):
            with state, denoiser.training(), torch.no_grad():
                velocities.append(denoiser.velocity(x_BCFHW, t_B, batch.conditions))
        velocity_BCFHW, base_BCFHW = velocities
        yield torch.cat([objective.mean(each.square(), open_B1F11)
                         for each in (velocity_BCFHW - base_BCFHW, base_BCFHW)])
