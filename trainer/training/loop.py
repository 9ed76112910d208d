"""The training loop: `train_step` is one optimizer step, `run` a generator of events.

The caller iterates over `run`, ends it after the current step by setting `stop`, lets it wait after step `pause_at`, or
aborts it with `close()`; there are no threads but the one that prepares batches ahead. The generator never holds a
torch context manager (such as no_grad) across a `yield`: inference mode is up to the caller.

A step is a function of (seed, step) and of the state before it: each step seeds a generator of its own for noise and
noise levels, and the data position is two integers. So a run that is resumed from a checkpoint goes on as one that was
never interrupted would have: bit for bit where the kernels give the same bits each time, as on a CPU.

On a CUDA device `train_step` only enqueues, and what came of a step is read while the device computes the next one;
where something is due after a step (evaluation, checkpoint, preview, the end) it is read at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..adapter.adapters import Adapter
from ..base.switches import check_deterministic, deterministic
from ..encoded.batches import BucketSampler, LookAhead
from ..encoded.cache import CachedDataset
from ..model.backend import Denoiser
from ..runs.events import Event, Finished, Paused, Saved, Started, StepDone
from ..runs.folder import Found, RunFolder
from ..runs.tensorboard import Scalars
from ..settings.training import TrainConfig
from . import evaluate, inputs, objective, optim, preservation
from .flat_adamw import clip
from .inputs import Inputs
from .length import check_learned, is_due, is_evaluation_due, is_over, total_steps
from .ranks import ALONE, Ranks
from .results import Enqueued, Numbers, Results, num_late
from .retry import Steps, enough_memory
from .saving import SavingTime, restore, state_of


class Trainer:
    """One run. `step` counts optimizer steps done, `results` holds what came of them.

    Args:
        found: the checkpoint and log that `RunFolder.resume` found; the run continues from them.
        step_down: goes on with less memory, and says how; None where it cannot.
        ranks: the processes that train it; of several the first one alone writes.
    """

    def __init__(
        self, config: TrainConfig, denoiser: Denoiser, adapter: Adapter, dataset: CachedDataset, folder: RunFolder,
        found: Found, step_down: Callable[[], str | None] = lambda: None, ranks: Ranks = ALONE,
    ) -> None:
        if config.deterministic:
            check_deterministic(denoiser.device)
        self.config = config
        self.denoiser = denoiser
        self.adapter = adapter
        self.dataset = dataset
        self.folder = folder
        self.ranks = ranks
        self._found: Found | None = found
        self.sampler = BucketSampler(dataset.samples, config.batch_size, config.seed)
        self.steps_per_epoch = math.ceil(self.sampler.steps_per_epoch / config.optimizer.accumulation)
        self.total_steps = total_steps(config, self.sampler.steps_per_epoch)
        self.optimizer = optim.optimizer_of(adapter, config.optimizer, config.learning_rate)
        self.averages = optim.Averages(config.optimizer, self.optimizer, adapter.parameters)
        self.judge = evaluate.Judge(denoiser, adapter, self.averages, dataset.held_out, config.objective, ranks)
        # loss scaling: without it fp16 gradients of a mean over a whole latent underflow; bf16 and fp32 need none
        self.scaler = torch.amp.GradScaler(denoiser.device.type, enabled=denoiser.compute_dtype == torch.float16)
        self._steps = Steps(self, step_down)
        self.stop, self.pause_at = False, 0  # at no step
        self.results = Results(self.total_steps, self.steps_per_epoch, self.scaler)
        self.step = 0
        self.position = (0, 0)
        self._is_whole = True  # False while weights or the log change and are inconsistent
        self._saved_step, self._saving = 0, SavingTime(config.validation.every_minutes)
        self._logged: set[tuple[str, int]] = set()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self._reason() != ""

    def run(self, is_awaited: Callable[[int], bool] = lambda step: False) -> Iterator[Event]:
        """Train to the end; the state after the last finished step is saved in any case.

        Args:
            is_awaited: whether the caller needs the weights as they are after just this step when it gets its StepDone;
                after other steps the next one may have been done already.

        Raises:
            UserError: out of memory, or the loss or the gradient was not finite for MAX_SKIPPED steps in a row.
        """
        start = time.perf_counter()
        restored = self._restore()
        self._look_ahead()
        self.folder.rewind(self.step)
        self.scalars = Scalars(self.folder.path, self.step, self.ranks.is_first)
        try:
            yield self._record(restored)
            with enough_memory(self):
                if not self.is_logged("Evaluated", self.step) and self._is_evaluation_due():
                    yield from map(self._record, self._evaluate_late())
                while not self.is_done and not self.ranks.any(self.stop):
                    yield from map(self._record, self._steps.take())
                    is_due = self.is_done or self.stop or is_awaited(self.step) or self._is_something_due()
                    yield from self._read(0 if is_due else num_late(self.denoiser.device))
                    self.results.check_progress(self.config.learning_rate)
                    if is_due:
                        yield from self._once_in_a_while()
                yield from self._read()
        finally:
            # also on Cancel, which is a BaseException in newer versions of ComfyUI
            self.batches.close()
            try:
                if self._is_whole and not (self.ranks.is_broken and len(self.results)):
                    deque(self._read(), maxlen=0)
                    if self.step > self._saved_step:
                        self._save()
            finally:
                self.scalars.close()
        check_learned(self.step, self.results.skipped)
        yield self._record(
            Finished(self.step, time.perf_counter() - start, self._reason() or "stopped", self.results.skipped))

    def _look_ahead(self) -> None:
        self.batches = LookAhead(inputs.of_steps(self.config, self.denoiser, self.sampler, self.step, self.ranks))

    def undo(self) -> bool:
        """Forget a step that did not come to its end, so that the next one is the same; False where weights moved."""
        if self._is_whole:
            self.batches.close()
            self.sampler.epoch, self.sampler.cursor = self.position
            self._look_ahead()
            self.adapter.discard_gradients()
            self.optimizer.zero_grad(set_to_none=True)
        return self._is_whole

    def train_step(self) -> None:
        """Predict, losses and backward for each batch of the step; then clip the gradient and step once.

        What came of it is still to be read, from `results`.
        """
        start = time.perf_counter()
        names, timesteps, losses, preserved = [], [], [], []
        for batch in inputs.of_one_step(self.batches):
            with self.adapter.dropout_from(batch.dropout_seed):
                loss_B, preserved_B = self._backward(batch.to(self.denoiser.device))
            losses.append(batch.placed(loss_B))
            preserved.append(batch.placed(preserved_B))
            names += batch.names
            timesteps += batch.timesteps

        rate = optim.rate_of_step(self.config.optimizer, self.total_steps, self.step)
        learning_rate = self.config.learning_rate * rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss_B = torch.cat([*losses, *preserved])
        self.ranks.sum([loss_B, *(parameter.grad for parameter in self.adapter.trained)])
        self._is_whole = False
        numbers = self._update(loss_B)
        self.step += 1
        self.position = batch.position
        self.results.add(Enqueued(self.step, tuple(names), tuple(timesteps), learning_rate, numbers, start))
        self._is_whole = True

    def _backward(self, batch: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Unweighted losses of a batch on the device: loss_B, and preserved_B, which is empty where the step does not.

        Their gradients are accumulated.
        """
        settings = self.config.objective
        loss_B = self._accumulated(batch, batch.weight_B, lambda: objective.denoising_loss(
            self.denoiser, batch.latent_BCFHW, batch.conditions, batch.t_B, batch.noise_BCFHW, batch.mask_B11HW,
            settings))
        if batch.prior is None:
            return loss_B, loss_B[:0]
        return loss_B, self._accumulated(batch, preservation.factor(settings), lambda: preservation.preservation_loss(
            self.denoiser, self.adapter, batch.latent_BCFHW, {**batch.conditions, **batch.prior}, batch.t_B,
            batch.noise_BCFHW))

    def _accumulated(self, batch: Inputs, weight: torch.Tensor | float, loss: Callable) -> torch.Tensor:
        with deterministic(self.config.deterministic), self.denoiser.training():
            loss_B = loss()
            self.scaler.scale((loss_B * weight).sum() / batch.divisor).backward()
        self.adapter.collect_gradients()
        return loss_B.detach()

    def _clip(self) -> torch.Tensor:
        """Clip the gradient to max_grad_norm; returns its norm before, on the device."""
        self.scaler.unscale_(self.optimizer)
        return clip(self.adapter.trained, self.config.optimizer.max_grad_norm or math.inf, self.adapter.split)

    def _update(self, loss_B: torch.Tensor) -> Numbers:
        """Clip, and one step of the optimizer; no weight changes if a loss or the gradient is not finite."""
        grad_norm = self._clip()
        scale = self.scaler.scale(torch.ones_like(grad_norm))
        numbers = Numbers(values := torch.cat([loss_B, grad_norm[None], scale[None]]))
        if optim.skips_on_device(self.optimizer) and not self.averages.follows:
            optim.step_if_finite(values, self.optimizer)
        elif all(map(math.isfinite, numbers.read())):
            self.optimizer.step()
            self.averages.step()
        self.scaler.update()  # lowers the loss scale where the gradient overflowed
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _read(self, leave: int = 0) -> Iterator[StepDone]:
        """Record what came of the enqueued steps, but for the newest `leave`; waits for the device."""
        while len(self.results) > leave:
            self.results.wait()
            self._is_whole = False
            yield self._record(self.results.read())

    def _reason(self) -> str:
        if self.step >= self.total_steps:
            return "done"
        return "early stop" if is_over(self.config, self.judge.since_best) else ""

    def _once_in_a_while(self) -> Iterator[Event]:
        """Evaluate and save after a step, where the validation settings make it due; pause where the caller wants."""
        if self._is_evaluation_due():
            yield self._record(self.judge.measure(self.step))
        is_best = self.judge.best_step == self.step
        if is_best or self._saving.is_due or self._is_planned(self.step):
            yield self._record(self._save())
        if self.step == self.pause_at and not self.is_done:
            yield Paused(self.step)

    def _evaluate_late(self) -> Iterator[Event]:
        """Evaluate at the start, or a step that Cancel saved before; it is saved again, as now it may be the best."""
        evaluated = self.judge.measure(self.step)
        if self.step:
            yield self._save()  # first, since what is in the log is not measured again
        yield evaluated

    def _is_something_due(self) -> bool:
        return self.step == self.pause_at or (
            self._is_evaluation_due() or self._saving.is_due or self._is_planned(self.step))

    def _is_evaluation_due(self) -> bool:
        return bool(self.dataset.held_out) and is_evaluation_due(
            self.config.validation, self.step, self.total_steps, self.steps_per_epoch)

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
        if not self.ranks.is_first:
            self._saved_step = self.step
            return Saved(self.step, 0.0)
        # the history first: what a checkpoint follows is never missing from it
        self.scalars.flush()
        self.folder.sync_log()
        self.folder.save(self.step, self.adapter_state(), state_of(self))
        if self.judge.best_step:
            judge = self.judge
            self.folder.mark_best(judge.best_step, judge.best_loss, judge.best_learned)
        self.folder.tidy(self.step, self.config.validation.keep_last, self.judge.best_step, self._is_planned)
        self._saved_step, seconds = self.step, time.perf_counter() - start
        self._saving.took(seconds)
        return Saved(self.step, seconds)

    def _restore(self) -> Started:
        """Continue from the checkpoint and the log that were found in the run's folder."""
        found, self._found = self._found, None  # frees the checkpoint's tensors once they are copied
        if found.checkpoint is not None:
            restore(self, found.checkpoint.state)
            self._saved_step = self.step
        self._logged = {(line["event"], line["step"]) for line in found.lines if line["step"] == self.step}
        self.results.losses = found.losses
        return Started(
            step=self.step, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch,
            num_modules=self.adapter.num_modules, passed_over=found.passed_over,
            num_parameters=sum(parameter.numel() for parameter in self.adapter.parameters))

    def is_logged(self, event: str, step: int) -> bool:
        """Whether the run was resumed from this step with such an event of it in the log."""
        return (event, step) in self._logged

    def _record(self, event: Event) -> Event:
        self._is_whole = False  # what is not in the log is not saved, and so done again
        self.folder.log(event)
        self._is_whole = True
        self.scalars.add(event)
        return event
