"""The training loop: `train_step` is one optimizer step, `run` a generator of events.

Whoever drives `run` watches with `for` and stops with `close()`; there are no callbacks, and no threads but the one
that reads batches ahead.
The generator never holds a context across a `yield`: inference mode belongs to the caller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from . import objective, optim
from .adapters import Adapter
from .backend import Denoiser
from .cache import CachedDataset
from .checkpoint import RunFolder
from .config import TrainConfig, UserError
from .events import Event, Finished, Started, StepDone
from .sampling import BucketSampler, LookAhead


class Trainer:
    """One run. `step` counts optimizer steps done; `losses` holds the loss of each."""

    def __init__(
        self, config: TrainConfig, denoiser: Denoiser, adapter: Adapter, dataset: CachedDataset, folder: RunFolder
    ) -> None:
        self.config = config
        self.denoiser = denoiser
        self.adapter = adapter
        self.folder = folder
        self.sampler = BucketSampler(dataset.clips, config.batch_size, config.seed)
        self.batches = LookAhead(self.sampler)
        self.total_steps = config.epochs * self.sampler.steps_per_epoch
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = optim.build_optimizer(config, adapter.parameters)
        self.schedule = optim.build_schedule(config, self.optimizer, self.total_steps)
        # fp16 gradients of a mean over a whole latent vanish without it; bf16 and fp32 need none
        self.scaler = torch.amp.GradScaler(denoiser.device.type, enabled=denoiser.compute_dtype == torch.float16)
        self.step = 0
        self.losses: list[float] = []

    def run(self) -> Iterator[Event]:
        """Train to the end. However it ends, the adapter of the last finished step is in the run folder."""
        start = time.perf_counter()
        try:
            yield self._record(Started(
                total_steps=self.total_steps,
                steps_per_epoch=self.sampler.steps_per_epoch,
                num_modules=self.adapter.num_modules,
                num_parameters=sum(parameter.numel() for parameter in self.adapter.parameters),
            ))
            while self.step < self.total_steps:
                yield self._record(self.train_step())
        finally:
            self.batches.close()
            # also on Cancel, which is a BaseException in newer versions of ComfyUI
            if self.step:
                self.folder.save_step(self.step, self.adapter.state_dict(), {"loss": self.losses[-1]})
        yield self._record(Finished(self.step, time.perf_counter() - start))

    def train_step(self) -> StepDone:
        """Draw, noise, predict, loss, backward, clip, step.

        Raises:
            UserError: the loss or the gradient is not finite.
        """
        start = time.perf_counter()
        batch = self.batches.next().to(self.denoiser.device)
        latent_BCFHW = batch.latent_BCFHW
        t_B = objective.sample_timesteps(len(latent_BCFHW), self.generator)
        noise_BCFHW = objective.sample_noise(latent_BCFHW, self.generator)

        with self.denoiser.training():
            loss_B = objective.denoising_loss(
                self.denoiser, latent_BCFHW, batch.text_BLD, t_B.to(self.denoiser.device), noise_BCFHW,
                batch.mask_B11HW,
            )
            loss = loss_B.mean()
            loss_value = self._finite(loss.item(), "loss", batch.names)
            self.scaler.scale(loss).backward()

        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.adapter.parameters, self.config.max_grad_norm or math.inf
        ).item()
        if not self.scaler.is_enabled():  # the scaler skips a step that overflowed, and lowers its scale
            self._finite(grad_norm, "gradient", batch.names)
        learning_rate = self.schedule.get_last_lr()[0]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

        self.step += 1
        self.losses.append(loss_value)
        seconds = time.perf_counter() - start
        return StepDone(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.sampler.epoch + 1,
            loss=loss_value,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            timesteps=tuple(round(t, 4) for t in t_B.tolist()),
            seconds=seconds,
            samples_per_second=len(batch.names) / seconds,
        )

    def _finite(self, value: float, what: str, names: tuple[str, ...]) -> float:
        if not math.isfinite(value):
            raise UserError(
                f"The {what} is {value} at step {self.step + 1} ({', '.join(names)}); lower learning_rate (now "
                f"{self.config.learning_rate:g}), or load the model in bf16 or fp32."
            )
        return value

    def _record(self, event: Event) -> Event:
        self.folder.log(event)
        return event
