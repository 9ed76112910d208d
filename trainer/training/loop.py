"""The training loop: `train_step` is one optimizer step, `run` a generator of events.

The caller iterates over `run`, ends it after the current step by setting `stop`, or aborts it with `close()`; there are
no callbacks, and no threads but the one that reads batches ahead. The generator never holds a torch context manager
(such as no_grad) across a `yield`: inference mode is up to the caller.

A step is a function of (seed, step) and of the state before it: each step seeds a generator of its own for noise and
noise levels, and the data position is two integers. So a run that is resumed from a checkpoint is bit for bit equal to
one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from ..base.errors import UserError
from ..encoded.batches import Batch, BucketSampler, LookAhead
from ..encoded.cache import CachedDataset
from ..model.adapters import Adapter
from ..model.backend import Denoiser
from ..runs.events import Event, Finished, Saved, Started, StepDone
from ..runs.folder import Found, RunFolder
from ..runs.state import Checkpoint
from ..runs.tensorboard import Scalars
from ..settings.training import TrainConfig
from . import evaluate, objective, optim
from .length import check_learned, is_due, is_over, total_steps

MAX_SKIPPED = 10
"""A run ends after so many steps in a row whose loss or gradient is not finite."""

SHARE_OF_SAVING = 0.01
"""Of the time, at most, that checkpoints written by time take."""

_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""The same class under its newer and its older name."""


class Trainer:
    """One run. `step` counts optimizer steps done; `losses` holds the finite losses of these.

    Args:
        found: the checkpoint and log that `RunFolder.resume` found; the run continues from them.
    """

    def __init__(
        self, config: TrainConfig, denoiser: Denoiser, adapter: Adapter, dataset: CachedDataset, folder: RunFolder,
        found: Found,
    ) -> None:
        self.config = config
        self.denoiser = denoiser
        self.adapter = adapter
        self.dataset = dataset
        self.folder = folder
        self._found: Found | None = found
        self.sampler = BucketSampler(dataset.samples, config.batch_size, config.seed)
        self.batches = LookAhead(self.sampler, dataset.family.conditions)
        self.steps_per_epoch = math.ceil(self.sampler.steps_per_epoch / config.optimizer.accumulation)
        self.total_steps = total_steps(config, self.sampler.steps_per_epoch)
        self.optimizer = optim.build_optimizer(config.optimizer, config.learning_rate, adapter.parameters)
        self.averages = optim.Averages(config.optimizer, self.optimizer, adapter.parameters)
        self.judge = evaluate.Judge(denoiser, adapter, self.averages, dataset.held_out)
        # loss scaling: without it fp16 gradients of a mean over a whole latent underflow; bf16 and fp32 need none
        self.scaler = torch.amp.GradScaler(denoiser.device.type, enabled=denoiser.compute_dtype == torch.float16)
        self.stop = False
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.losses: list[float] = []
        self._position = (0, 0)
        self._is_whole = True  # False while weights or the log change and are inconsistent
        self._saved_step, self._saved_time = 0, time.monotonic()
        self._save_seconds = 0.0
        self._logged: set[tuple[str, int]] = set()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self._reason() != ""

    def run(self) -> Iterator[Event]:
        """Train to the end; the state after the last finished step is saved in any case. UserError if out of memory."""
        start = time.perf_counter()
        restored = self._restore()
        self.folder.rewind(self.step)
        self.scalars = Scalars(self.folder.path, self.step)
        try:
            yield self._record(restored)
            if not self.is_logged("Evaluated", self.step) and self._is_evaluation_due():
                yield self._record(self.judge.measure(self.step))  # at the start, or where Cancel preempted it
            while not self.is_done and not self.stop:
                yield self._record(self.train_step())
                yield from self._once_in_a_while()
        except _OUT_OF_MEMORY as error:
            raise UserError(f"Out of memory at step {self.step + 1} of {self.total_steps}; lower batch_size, "
                            "resolution, frame_buckets or rank, or switch gradient_checkpointing on. What was learned "
                            f"is saved. ({str(error).splitlines()[0]})") from None
        finally:
            # also on Cancel, which is a BaseException in newer versions of ComfyUI
            self.batches.close()
            self.scalars.close()
            if self._is_whole and self.step > self._saved_step:
                self._save()
        check_learned(self.step, self.skipped)
        yield self._record(
            Finished(self.step, time.perf_counter() - start, self._reason() or "stopped", self.skipped))

    def train_step(self) -> StepDone:
        """Draw t and noise, predict, loss and backward for each batch; then clip the gradient and step once.

        Raises:
            UserError: the loss or the gradient was not finite for MAX_SKIPPED steps in a row.
        """
        start = time.perf_counter()
        position, batches = self._next_batches()
        sizes = [len(batch.names) for batch in batches]
        generator = objective.generator(self.config.seed, self.step)
        uniform = objective.sample_uniform(self.config.objective, sum(sizes), generator).split(sizes)
        timesteps, losses = [], []
        for batch, u_B in zip(batches, uniform, strict=True):
            dropout = objective.generator("dropout", self.config.seed, self.step, len(losses)).initial_seed()
            with self.adapter.dropout_from(dropout):
                t_B, loss_B = self._backward(batch, u_B, sum(sizes), generator)
            timesteps += t_B.tolist()
            losses += loss_B.tolist()

        rate = optim.rate_of_step(self.config.optimizer, self.total_steps, self.step)
        learning_rate = self.config.learning_rate * rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        grad_norm = self._clip() if all(map(math.isfinite, losses)) else math.nan
        self._is_whole = False
        is_skipped = not self._update(grad_norm)
        self.step += 1
        self._position = position
        self._is_whole = True
        loss = sum(losses) / len(losses)
        self._count(is_skipped, loss, [name for batch in batches for name in batch.names])
        seconds = time.perf_counter() - start
        return StepDone(
            step=self.step,
            total_steps=self.total_steps,
            epoch=(self.step - 1) // self.steps_per_epoch + 1,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            timesteps=tuple(round(t, 4) for t in timesteps),
            losses=tuple(losses),
            is_skipped=is_skipped,
            seconds=seconds,
            samples_per_second=len(losses) / seconds,
        )

    def _next_batches(self) -> tuple[tuple[int, int], list[Batch]]:
        """The data position after an optimizer step, and the step's batches, all of one epoch."""
        batches = [self.batches.next()]
        while len(batches) < self.config.optimizer.accumulation and self.sampler.cursor < self.sampler.steps_per_epoch:
            batches.append(self.batches.next())
        return (self.sampler.epoch, self.sampler.cursor), batches

    def _backward(
        self, batch: Batch, u_B: torch.Tensor, num_samples: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """t_B and the unweighted loss_B of one batch; its gradient is accumulated."""
        config, device = self.config.objective, self.denoiser.device
        batch = batch.to(device)
        latent_BCFHW = batch.latent_BCFHW
        t_B = objective.timesteps_of(config, u_B, latent_BCFHW[0].numel() // self.dataset.family.values_per_token)
        noise_BCFHW = objective.sample_noise(latent_BCFHW, generator, config.noise_offset)
        with self.denoiser.training():
            loss_B = objective.denoising_loss(
                self.denoiser, latent_BCFHW, batch.conditions, t_B.to(device), noise_BCFHW, batch.mask_B11HW, config
            )
            loss = (loss_B * objective.weight(config, t_B).to(device)).sum() / num_samples
            self.scaler.scale(loss).backward()
        self.adapter.collect_gradients()
        return t_B, loss_B.detach().cpu()

    def _clip(self) -> float:
        """Clip the gradient to max_grad_norm; returns its norm before."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.optimizer.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.adapter.parameters, limit).item()

    def _update(self, grad_norm: float) -> bool:
        """One step of the optimizer; False if the loss or the gradient is not finite and no weight was changed."""
        is_finite = math.isfinite(grad_norm)
        if is_finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips the step if a gradient overflowed
            self.scaler.update()  # and lowers the loss scale then
        if is_finite:
            self.averages.step()
        self.optimizer.zero_grad(set_to_none=True)
        return is_finite

    def _count(self, is_skipped: bool, loss: float, names: list[str]) -> None:
        if math.isfinite(loss):
            self.losses.append(loss)
        if not is_skipped:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        # fp16: a lower loss scale cures an overflow, so only one at a scale below 1 counts
        if not math.isfinite(loss) or not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise UserError(
                f"The loss or its gradient was not finite for {MAX_SKIPPED} steps in a row, the last at step "
                f"{self.step} ({', '.join(names)}, loss {loss}). The LoRA is as it was before them. Lower "
                f"learning_rate (now {self.config.learning_rate:g}), or load the model in bf16 or fp32."
            )

    def _reason(self) -> str:
        if self.step >= self.total_steps:
            return "done"
        return "early stop" if is_over(self.config, self.judge.since_best) else ""

    def _once_in_a_while(self) -> Iterator[Event]:
        """Evaluate and save after a step, where the validation settings make it due."""
        validation = self.config.validation
        if self._is_evaluation_due():
            yield self._record(self.judge.measure(self.step))
        pause = max(60 * validation.every_minutes, self._save_seconds / SHARE_OF_SAVING)
        is_time = validation.every_minutes and time.monotonic() - self._saved_time >= pause
        is_best = self.judge.best_step == self.step
        if is_time or is_best or self._is_planned(self.step):
            yield self._record(self._save())

    def _is_evaluation_due(self) -> bool:
        validation = self.config.validation
        if not self.dataset.held_out or not (validation.evaluate_steps or validation.evaluate_epochs):
            return False
        return self.step in (0, self.total_steps) or is_due(
            self.step, validation.evaluate_steps, validation.evaluate_epochs, self.steps_per_epoch)

    def _is_planned(self, step: int) -> bool:
        """Whether the user asked for a checkpoint of this step."""
        settings = self.config.validation
        return is_due(step, settings.every_steps, settings.every_epochs, self.steps_per_epoch)

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The adapter's weights to use: the moving average where there is one."""
        with self.averages.in_place():
            return self.adapter.state_dict()

    def _save(self) -> Saved:
        start = time.perf_counter()
        state = {
            "step": self.step, "skipped": self.skipped, "position": self._position, "judge": self.judge.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "averages": self.averages.state_dict(), "parameters": self.adapter.state_dict(),
        }
        # the history first: what a checkpoint follows is never missing from it
        self.scalars.flush()
        self.folder.sync_log()
        self.folder.save(self.step, self.adapter_state(), state)
        if self.judge.best_step:
            self.folder.mark_best(self.judge.best_step, self.judge.best_loss)
        self.folder.tidy(self.step, self.config.validation.keep_last, self.judge.best_step, self._is_planned)
        self._saved_step, self._saved_time, self._save_seconds = (
            self.step, time.monotonic(), time.perf_counter() - start)
        return Saved(self.step, self._save_seconds)

    def _restore(self) -> Started:
        """Continue from the checkpoint and the log that were found in the run's folder."""
        found, self._found = self._found, None  # frees the checkpoint's tensors once they are copied
        if found.checkpoint is not None:
            self._load(found.checkpoint)
        self._logged = {(line["event"], line["step"]) for line in found.lines if line["step"] == self.step}
        self.losses = found.losses
        return Started(
            step=self.step, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch,
            num_modules=self.adapter.num_modules, passed_over=found.passed_over,
            num_parameters=sum(parameter.numel() for parameter in self.adapter.parameters))

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.step, self.skipped = state["step"], state["skipped"]
        self.judge.load_state_dict(state["judge"])
        self.adapter.load_state_dict(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.averages.load_state_dict(state["averages"])
        self._position = self.sampler.epoch, self.sampler.cursor = state["position"]
        self._saved_step = self.step

    def is_logged(self, event: str, step: int) -> bool:
        """Whether the run was resumed from this step with such an event of it in the log."""
        return (event, step) in self._logged

    def _record(self, event: Event) -> Event:
        self._is_whole = False  # what is not in the log is not saved, and so done again
        self.folder.log(event)
        self._is_whole = True
        self.scalars.add(event)
        return event
