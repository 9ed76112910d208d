"""How long a run is, when it is over, and what is due in between."""

from __future__ import annotations

import math

from ..base.errors import UserError
from ..settings.training import TrainConfig, ValidationConfig


def total_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    """Optimizer steps of a whole run; an epoch's last step may have fewer batches."""
    steps = config.epochs * math.ceil(batches_per_epoch / config.optimizer.accumulation)
    return min(steps, config.max_steps) if config.max_steps else steps


def is_due(step: int, every_steps: int, every_epochs: int, steps_per_epoch: int) -> bool:
    """Whether something is done after this step that is done every so many steps and epochs; 0 = not by these."""
    period = every_epochs * steps_per_epoch
    return bool((every_steps and step % every_steps == 0) or (period and step % period == 0))


def is_evaluation_due(settings: ValidationConfig, step: int, total_steps: int, steps_per_epoch: int) -> bool:
    """Whether what is held out is measured on after this step; where it ever is, also at the start and at the end."""
    if not (settings.evaluate_steps or settings.evaluate_epochs):
        return False
    return step in (0, total_steps) or is_due(
        step, settings.evaluate_steps, settings.evaluate_epochs, steps_per_epoch)


def is_over(config: TrainConfig, since_best: int) -> bool:
    """Whether early stopping ends the run, after so many evaluations without a better one."""
    return bool(config.validation.early_stop) and since_best >= config.validation.early_stop


def check_learned(step: int, skipped: int) -> None:
    """UserError if none of the steps of a run changed anything."""
    if step and skipped == step:
        raise UserError(f"The loss or its gradient was not finite in any of the {step} steps, so nothing was learned. "
                        "Lower learning_rate, load the model in bf16 or fp32, or take more steps if it is fp16.")
