"""The held-out loss, what was learned, what is best: on fixed files at fixed noise, by the same loss as in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import read_batch
from ..encoded.cache import CachedSample
from ..model.backend import Denoiser
from ..runs.events import Evaluated
from ..settings.training import WHOLE, ObjectiveConfig
from . import meters, objective
from .optim import Averages
from .ranks import ALONE, Ranks

LEVELS = tuple(round(0.1 * level, 1) for level in range(1, 10))
"""Noise levels t of the held-out loss."""

TOLERANCE = 0.05
"""A later step is the better one if it has learned more by this share of the most that was learned, then by itself.
The gain in held-out loss scatters by about 3 % of itself from one measurement to the next (docs/learning.md)."""


def levels_of(settings: ObjectiveConfig, levels: tuple[float, ...] = LEVELS) -> tuple[float, ...]:
    """Of one expert of a pair those within its window, since it is used for no others; of a whole model all of them."""
    if settings.window == WHOLE:
        return levels
    return tuple(round(settings.min_t + (settings.max_t - settings.min_t) * level, 6) for level in levels)


def held_out_loss(
    denoiser: Denoiser, samples: Sequence[CachedSample], levels: Sequence[float] = LEVELS, ranks: Ranks = ALONE
) -> dict[float, float]:
    """{noise level t: mean loss over the samples}, unweighted MSE, a function of the model and the samples alone.

    The noise of a sample is seeded by its latent's content key, so that adding files does not change that of the
    others. The caller sets the weights that are measured (adapter, moving average, or the model alone). Each sample is
    measured by one of the processes; all get the same numbers, whatever their number.
    """
    def losses_of(sample: CachedSample) -> torch.Tensor:
        batch = read_batch([sample.visit(0)], denoiser.family.conditions)
        conditions = denoiser.prepared(batch.conditions, batch.latent_BCFHW.shape[2:])
        batch = replace(batch, conditions=conditions).to(denoiser.device)
        noise_BCFHW = objective.sample_noise(batch.latent_BCFHW, objective.generator(sample.latent_paths[0].stem))
        losses = []
        for level in levels:
            t_B = torch.tensor([level], device=denoiser.device)
            with denoiser.training(), torch.no_grad():
                losses.append(objective.denoising_loss(
                    denoiser, batch.latent_BCFHW, batch.conditions, t_B, noise_BCFHW, batch.mask_B11HW))
        return torch.cat(losses)

    sums = dict.fromkeys(levels, 0.0)
    for losses in ranks.measured(samples, losses_of).tolist():
        for level, loss in zip(levels, losses, strict=True):
            sums[level] += loss
    return {level: total / len(samples) for level, total in sums.items()}


BROKEN = 1.25
"""Times the base's held-out loss: beyond it a step is never the best, however far it has gone the right way besides. At
1.18 a LoRA of sixteen times the rate had lost a third of what the model knew (docs/learning.md)."""


class Judge:
    """Measures the held-out loss, what was learned and the drift during a run, and keeps which step is the best.

    That is the one that has learned the most (`meters.learned`), where a later step takes its place only if it has
    learned more by TOLERANCE: the beginning of a plateau, not its end. It is decided at each measurement, since of the
    others no checkpoint need be left. Where what was learned is unknown, as of the best of a run from before it was
    measured, the lower held-out loss is the better one.
    """

    def __init__(
        self, denoiser: Denoiser, adapter: Adapter, averages: Averages, samples: Sequence[CachedSample],
        settings: ObjectiveConfig | None = None, ranks: Ranks = ALONE,
    ) -> None:
        self._settings = settings or ObjectiveConfig()
        self._denoiser = denoiser
        self._ranks = ranks
        self._adapter = adapter
        self._averages = averages
        self._samples = samples
        self.base_loss = math.nan
        """Held-out loss of the model without the adapter; nan until it is measured."""
        self.best_loss, self.best_step = math.inf, 0
        self.best_learned = -math.inf
        """What the best step has learned; nan where it is unknown."""
        self.since_best = 0
        """Evaluations since the best one."""

    def measure(self, step: int) -> Evaluated:
        """Measure the weights that would be saved now and, the first time, the model without the adapter.

        Weights and random generators are afterwards as they were before.

        Args:
            step: optimizer steps done; step 0 is measured but never the best. The best one stays so when it is measured
                again.
        """
        if math.isnan(self.base_loss):
            with self._adapter.switched_off():
                self.base_loss = _mean(self._losses())
        with self._averages.in_place():
            levels = self._losses()
            learned = self._metered(meters.learned, meters.TOP_LEVELS)
            drift = self._metered(meters.drift, meters.DRIFT_LEVELS)
        loss = _mean(levels)
        is_best = step > 0 and (step == self.best_step or self._is_better(loss, learned))
        if is_best:
            self.best_step, self.best_loss, self.best_learned = step, loss, learned
        self.since_best = 0 if is_best or step == 0 else self.since_best + 1
        return Evaluated(step, loss, tuple(levels.items()), self.base_loss, is_best, drift, learned)

    def _losses(self) -> dict[float, float]:
        return held_out_loss(self._denoiser, self._samples, levels_of(self._settings), self._ranks)

    def _metered(self, meter: Callable[..., float | None], levels: tuple[float, ...]) -> float | None:
        return meter(self._denoiser, self._adapter, self._samples, levels_of(self._settings, levels), self._ranks)

    def _is_better(self, loss: float, learned: float) -> bool:
        """Whether a step takes the place of the best one so far."""
        if loss > BROKEN * self.base_loss:
            return False
        if math.isnan(learned) or math.isnan(self.best_learned):
            return loss < self.best_loss
        return learned - TOLERANCE * max(0.0, learned) > self.best_learned

    def state_dict(self) -> dict:
        """The losses and counters, as a checkpoint keeps them."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`, also one from before what was learned was measured, or was measured this way."""
        is_other = "best_learned" not in state or "most_learned" in state
        for name in _KEPT:
            setattr(self, name, math.nan if name == "best_learned" and is_other else state[name])


_KEPT = ("base_loss", "best_loss", "best_step", "since_best", "best_learned")
"""What a checkpoint keeps of a `Judge`."""


def _mean(levels: dict[float, float]) -> float:
    return sum(levels.values()) / len(levels)
