"""The held-out loss, what was learned, what is best: on fixed files at fixed noise, by the same loss as in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import read_batch
from ..encoded.cache import CachedSample
from ..model.backend import Denoiser
from ..runs.events import Evaluated, share_learned
from ..settings.training import WHOLE, ObjectiveConfig
from . import meters, objective
from .optim import Averages
from .ranks import ALONE, Ranks

LEVELS = tuple(round(0.1 * level, 1) for level in range(1, 10))
"""Noise levels t of the held-out loss."""

TOP = 1.0
"""The noise level at which what was learned is measured. From pure noise the prediction shows what the model would draw
at all. The lower t, the more the loss says how exactly this very picture is continued, and that suffers from training
long before the concept does (docs/learning.md)."""

TOLERANCE = 0.05
"""What was learned counts as equal where it differs by no more than this share of the most that ever was. From one
measurement to the next the gain in held-out loss scatters by about 3 % of itself at its end (docs/learning.md)."""


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


def loss_and_top(
    denoiser: Denoiser, samples: Sequence[CachedSample], settings: ObjectiveConfig, ranks: Ranks = ALONE
) -> tuple[dict[float, float], float]:
    """({noise level: loss} of the held-out loss, the loss at the highest noise level), by `held_out_loss`.

    The highest is TOP, or the upper end of an expert's window. It is no part of the held-out loss.
    """
    (top,) = levels_of(settings, (TOP,))
    losses = held_out_loss(denoiser, samples, (*levels_of(settings), top), ranks)
    top_loss = losses.pop(top)
    return losses, top_loss


class Judge:
    """Measures the held-out loss, what was learned and the drift during a run, and keeps which step is the best.

    That is the one that has learned the most (`runs.events.share_learned`), and of those that have learned as much
    (TOLERANCE) the one that has drifted the least: the beginning of a plateau, not its end. It is decided at each
    measurement, since of steps that were not the best no checkpoint need be left. Where the drift is unknown, it is the
    one that has learned the most; where that is unknown of the best, as in runs from before it was measured, the
    held-out loss decides in its place.
    """

    def __init__(
        self, denoiser: Denoiser, adapter: Adapter, averages: Averages, samples: Sequence[CachedSample],
        settings: ObjectiveConfig | None = None, ranks: Ranks = ALONE,
    ) -> None:
        self._settings = settings or ObjectiveConfig()
        self._drift_levels = levels_of(self._settings, meters.DRIFT_LEVELS)
        self._denoiser = denoiser
        self._ranks = ranks
        self._adapter = adapter
        self._averages = averages
        self._samples = samples
        self.base_loss = math.nan
        """Held-out loss of the model without the adapter; nan until it is measured."""
        self.base_top_loss = math.nan
        """Its loss at the highest noise level; nan until it is measured."""
        self.best_loss, self.best_step = math.inf, 0
        self.best_drift = math.nan
        """Drift of the best step; nan where it is unknown."""
        self.best_learned, self.most_learned = -math.inf, -math.inf
        """What the best step has learned, nan where it is unknown; and the most of any step since that is known."""
        self.least_loss = math.inf
        """The lowest held-out loss after the start."""
        self.since_best = 0
        """Evaluations since the best one."""

    def measure(self, step: int) -> Evaluated:
        """Measure the weights that would be saved now and, the first time, the model without the adapter.

        Weights and random generators are afterwards as they were before.

        Args:
            step: optimizer steps done; step 0 is measured but never the best.
        """
        if math.isnan(self.base_loss) or math.isnan(self.base_top_loss):
            with self._adapter.switched_off():
                levels, self.base_top_loss = self._measured()
            self.base_loss = _mean(levels)
        with self._averages.in_place():
            levels, top_loss = self._measured()
            drift = meters.drift(self._denoiser, self._adapter, self._samples, self._drift_levels, self._ranks)
        loss, learned = _mean(levels), share_learned(top_loss, self.base_top_loss)
        known_drift = math.nan if drift is None else drift
        is_best = step > 0 and self._is_better(loss, learned, known_drift)
        if is_best:
            self.best_step, self.best_loss, self.best_learned, self.best_drift = step, loss, learned, known_drift
        if step > 0:
            self.least_loss = min(self.least_loss, loss)  # a nan leaves it as it is
        if step > 0 and not math.isnan(self.best_learned):
            self.most_learned = max(self.most_learned, learned)
        self.since_best = 0 if is_best or step == 0 else self.since_best + 1
        return Evaluated(
            step, loss, tuple(levels.items()), self.base_loss, is_best, drift, top_loss, self.base_top_loss)

    def _measured(self) -> tuple[dict[float, float], float]:
        return loss_and_top(self._denoiser, self._samples, self._settings, self._ranks)

    def _is_better(self, loss: float, learned: float, drift: float) -> bool:
        """Whether a step of this loss, gain and drift (nan: unknown) takes the place of the best one so far."""
        gain, best, most = learned, self.best_learned, self.most_learned
        if math.isnan(best):
            gain, best, most = (self.base_loss - each for each in (loss, self.best_loss, self.least_loss))
        if not (math.isfinite(drift) and math.isfinite(self.best_drift)):
            return gain > most
        most = max(most, gain)
        enough = most - TOLERANCE * max(0.0, most)
        if not gain >= enough:
            return False
        return best < enough or (drift, -gain) < (self.best_drift, -best)

    def state_dict(self) -> dict:
        """The losses and counters, as a checkpoint keeps them."""
        return {name: getattr(self, name) for name in (
            "base_loss", "base_top_loss", "best_loss", "best_step", "since_best", "best_drift", "least_loss",
            "best_learned", "most_learned")}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`, also one from before drift or what was learned was measured."""
        for name, value in {"least_loss": state["best_loss"], "best_learned": math.nan, **state}.items():
            setattr(self, name, value)


def _mean(levels: dict[float, float]) -> float:
    return sum(levels.values()) / len(levels)
