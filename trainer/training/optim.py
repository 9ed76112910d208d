"""The optimizers, the learning rate schedules, and the moving average of the adapter."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ..adapter.adapters import Adapter
from ..base.errors import UserError
from ..settings.training import OptimizerConfig
from .flat_adamw import PiecewiseAdamW


def optimizer_of(adapter: Adapter, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer of all that an adapter trains; AdamW takes its matrices in pieces of memory.

    Raises:
        UserError: as `build_optimizer`.
    """
    adapter.is_in_pieces = adapter.has_pieces and config.name == "adamw"  # which treats each number by itself
    if not adapter.is_in_pieces:
        return build_optimizer(config, learning_rate, adapter.parameters)
    return build_optimizer(
        config, learning_rate, adapter.trained, partial(PiecewiseAdamW, adapter.parameters, adapter.split))


def build_optimizer(
    config: OptimizerConfig, learning_rate: float, parameters: list[torch.nn.Parameter],
    adamw: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) from torch; the others from pytorch-optimizer, 8-bit AdamW from bitsandbytes.

    Prodigy (arXiv:2306.06101) estimates the learning rate and multiplies it by `learning_rate`, usually 1. Adafactor
    (arXiv:1804.04235) runs without its relative step size. Lion: arXiv:2302.06675. CAME: arXiv:2307.02047.
    Schedule-free AdamW: arXiv:2405.15682.

    Args:
        adamw: makes AdamW.

    Raises:
        UserError: the package that an optimizer needs is not installed.
    """
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.name == "adamw":
        fused = parameters[0].device.type in ("cuda", "cpu")
        return adamw(parameters, lr=learning_rate, betas=betas, eps=config.eps, weight_decay=decay, fused=fused)
    if config.name == "adamw8bit":
        _require("bitsandbytes", config.name)
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(
            parameters, lr=learning_rate, betas=betas, eps=config.eps, weight_decay=decay)
    _require("pytorch_optimizer", config.name)
    import pytorch_optimizer as more

    if config.name == "prodigy":
        return more.Prodigy(parameters, lr=learning_rate, betas=betas, eps=config.eps, weight_decay=decay,
                            bias_correction=True, safeguard_warmup=True)
    if config.name == "adafactor":
        return more.AdaFactor(parameters, lr=learning_rate, betas=(None, config.beta2), weight_decay=decay,
                              scale_parameter=False, relative_step=False)
    if config.name == "lion":
        return more.Lion(parameters, lr=learning_rate, betas=betas, weight_decay=decay)
    if config.name == "came":
        return more.CAME(parameters, lr=learning_rate, betas=(*betas, 0.9999), weight_decay=decay)
    return more.ScheduleFreeAdamW(parameters, lr=learning_rate, betas=betas, eps=config.eps, weight_decay=decay)


def rate_of_step(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """The factor on the learning rate in a step, counted from 0.

    It rises linearly for warmup_steps. Then, with p the share of the remaining steps that is done, from 0 towards 1:

    constant: 1. linear: 1 - p.
    cosine: (1 + cos(pi p)) / 2 (Loshchilov and Hutter, arXiv:1608.03983, equation 5).
    cosine_with_restarts: the same, `cycles` times one after the other.
    polynomial: (1 - 1e-7) (1 - p)^power + 1e-7 (google-research/bert, optimization.py; fairseq).

    Equal bit for bit to huggingface/diffusers (optimization.py, get_*_schedule_with_warmup) with one more step of
    warm-up and one more in total, evaluated at step + 1, so that no step has a learning rate of 0 and trains nothing.
    A test compares them.
    """
    now, rise, end = step + 1, config.warmup_steps + 1, total_steps + 1
    if now < rise:
        return now / rise
    fall = max(1, end - rise)
    p = (now - rise) / fall
    if config.schedule == "linear":
        return max(0.0, (end - now) / fall)  # 1 - p would round differently from diffusers
    if config.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * p)))
    if config.schedule == "cosine_with_restarts":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (config.cycles * p % 1.0)))) if p < 1.0 else 0.0
    if config.schedule == "polynomial":
        return (1.0 - 1e-7) * (1 - p) ** config.power + 1e-7 if now <= end else 1e-7
    return 1.0


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_if_finite` takes the optimizer: torch's fused ones, which skip a step without the host's knowing.
    """
    return bool(optimizer.defaults.get("fused"))


def step_if_finite(numbers: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer; nothing changes where one of these numbers, on the device, is not finite.

    Nobody waits for it: the attribute is how torch.amp.GradScaler tells a fused optimizer of a gradient that
    overflowed.
    """
    optimizer.found_inf = (numbers * 0).sum().ne(0).float()  # 0 times what is not finite is NaN
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


class Averages:
    """The weights that are saved and measured: the moving average of the trained parameters, or these themselves.

    The average is diffusers' EMAModel, whose decay rises as (1 + step) / (10 + step) to config.ema_decay; schedule-free
    optimizers have an average of their own.
    """

    def __init__(
        self, config: OptimizerConfig, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._ema = None
        if config.ema_decay:
            from diffusers.training_utils import EMAModel  # imports slowly

            self._ema = EMAModel(parameters, decay=config.ema_decay)
        has_average = self._ema is not None or hasattr(optimizer, "eval")  # as schedule-free optimizers have it
        self._is_used = config.use_average and has_average

    @property
    def follows(self) -> bool:
        """Whether `step` does something, so that the host must know whether a step was skipped."""
        return self._ema is not None

    def step(self) -> None:
        """Update the average; to be called after each optimizer step."""
        if self._ema is not None:
            self._ema.step(self._parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context the parameters hold the average; on exit their trained values are restored bit for bit."""
        if not self._is_used:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._parameters]
        if self._ema is not None:
            self._ema.copy_to(self._parameters)
        else:
            self._optimizer.eval()
        try:
            yield
        finally:
            if self._ema is None:
                self._optimizer.train()
            with torch.no_grad():
                for parameter, value in zip(self._parameters, own, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict:
        """State of EMAModel; empty without one (a schedule-free average is in the optimizer's state)."""
        if self._ema is None:
            return {}
        return {"shadow": list(self._ema.shadow_params), "step": self._ema.optimization_step}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        if self._ema is not None:
            for shadow, value in zip(self._ema.shadow_params, state["shadow"], strict=True):
                shadow.copy_(value)
            self._ema.optimization_step = state["step"]


def _require(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"The optimizer {name} needs the package {package}; install it with `python -m pip install "
                        f"{package.replace('_', '-')}`, or choose adamw.")
