"""What a step needs from the host: read, drawn and prepared ahead by a thread, so that the device waits for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ..encoded.batches import BucketSampler, LookAhead, Position, read_batch, read_priors
from ..model.backend import Denoiser
from ..settings.training import TrainConfig
from . import objective, preservation
from .ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch and all that is drawn for it: a function of the data, (seed, step), and its number within the step.

    Where several processes train, its tensors are those of the rows that this one computes.
    """

    names: tuple[str, ...]
    """Of all rows, whoever computes them."""
    latent_BCFHW: torch.Tensor
    """fp32."""
    noise_BCFHW: torch.Tensor
    """Standard normal, fp32."""
    t_B: torch.Tensor
    """Noise levels in 0..1, fp32."""
    weight_B: torch.Tensor
    """Of each sample's loss, fp32."""
    conditions: dict[str, torch.Tensor]
    """As `Denoiser.prepared` gives them."""
    mask_B11HW: torch.Tensor | None
    """fp32 in 0..1; None where no sample has a mask."""
    timesteps: tuple[float, ...]
    """t_B of all rows for the log."""
    dropout_seed: int
    num_samples: int
    """Of the optimizer step, in all of its batches."""
    position: Position
    """Of the data after this batch."""
    is_last: bool
    """Whether it is the last batch of its optimizer step."""
    rows: slice
    """Which of all rows this process computes."""
    is_counted: bool
    """Whether they count; else another one computes them, too (`Ranks.rows`)."""
    prior: dict[str, torch.Tensor] | None = None
    """Those of `conditions` that are others for prior captions; None where the step does not preserve."""

    def to(self, device: torch.device) -> Inputs:
        """The same on the device; the copies are enqueued there and not waited for."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pinned(self, device: torch.device) -> Inputs:
        """The same in memory from which a CUDA device copies by itself; elsewhere as it is."""
        return self._each(_pinned) if device.type == "cuda" else self

    @property
    def divisor(self) -> float:
        """Of the sum of the rows' losses: infinite where they do not count."""
        return self.num_samples if self.is_counted else math.inf

    def placed(self, loss_B: torch.Tensor) -> torch.Tensor:
        """The losses of this process's rows at their places among those of all rows, else zeros; none stay none."""
        if not len(loss_B) or (self.is_counted and len(loss_B) == len(self.names)):
            return loss_B
        whole_B = loss_B.new_zeros(len(self.names))
        if self.is_counted:
            whole_B[self.rows] = loss_B
        return whole_B

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        return replace(
            self, latent_BCFHW=change(self.latent_BCFHW), noise_BCFHW=change(self.noise_BCFHW), t_B=change(self.t_B),
            weight_B=change(self.weight_B), mask_B11HW=None if self.mask_B11HW is None else change(self.mask_B11HW),
            conditions={name: change(tensor) for name, tensor in self.conditions.items()},
            prior=None if self.prior is None else {name: change(tensor) for name, tensor in self.prior.items()})


def of_steps(
    config: TrainConfig, denoiser: Denoiser, sampler: BucketSampler, step: int, ranks: Ranks = ALONE
) -> Iterator[Inputs]:
    """Endless: the batches of one optimizer step after the other, each step's of one epoch.

    Args:
        sampler: at the position of the first batch; it is moved on.
        step: the optimizer step of the first batch, counted from 0.
    """
    family = denoiser.family
    while True:
        taken = [(sampler.next(), sampler.position)]
        while len(taken) < config.optimizer.accumulation and sampler.cursor < sampler.steps_per_epoch:
            taken.append((sampler.next(), sampler.position))
        sizes = [len(visits) for visits, _ in taken]
        generator = objective.generator(config.seed, step)
        uniform = objective.sample_uniform(config.objective, sum(sizes), generator).split(sizes)
        for number, ((visits, position), u_B) in enumerate(zip(taken, uniform, strict=True)):
            rows, is_counted = ranks.rows(len(visits))
            batch = read_batch(visits[rows], family.conditions)
            size_FHW = batch.latent_BCFHW.shape[2:]
            num_tokens = batch.latent_BCFHW[0].numel() // family.values_per_token
            t_B = objective.timesteps_of(config.objective, u_B, num_tokens, is_clip=size_FHW[0] > 1)
            conditions = denoiser.prepared(batch.conditions, size_FHW)
            prior = None
            if preservation.is_due(config.objective, step):
                said = denoiser.prepared({**batch.conditions, **read_priors(visits[rows], family.conditions)}, size_FHW)
                prior = _others(said, conditions)
            whole_BCFHW = batch.latent_BCFHW[:1].expand(len(visits), -1, -1, -1, -1)  # as large as the whole batch
            noise_BCFHW = objective.sample_noise(whole_BCFHW, generator, config.objective.noise_offset)
            yield Inputs(
                names=tuple(visit.name for visit in visits),
                latent_BCFHW=batch.latent_BCFHW,
                noise_BCFHW=ranks.part(noise_BCFHW, rows),
                t_B=t_B[rows],
                weight_B=objective.weight(config.objective, t_B[rows]),
                conditions=conditions,
                mask_B11HW=batch.mask_B11HW,
                timesteps=tuple(t_B.tolist()),
                dropout_seed=objective.generator(
                    "dropout", config.seed, step, sum(sizes[:number]) + rows.start).initial_seed(),
                num_samples=sum(sizes),
                position=position,
                is_last=number == len(sizes) - 1,
                rows=rows,
                is_counted=is_counted,
                prior=prior,
            ).pinned(denoiser.device)
        step += 1


def of_one_step(batches: LookAhead[Inputs]) -> Iterator[Inputs]:
    """The next ones, up to the last of their optimizer step."""
    is_last = False
    while not is_last:
        batch = batches.next()
        is_last = batch.is_last
        yield batch


def _others(tensors: dict[str, torch.Tensor], known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that are not as the known ones, so that an image is not on the device twice."""
    return {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, known[name])}


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.pin_memory()
    except RuntimeError:  # the system gives no more such memory (WSL gives little): the copy is then waited for
        return tensor
