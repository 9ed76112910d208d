"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import torch

from .config import TrainConfig


def build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101); betas as diffusion-pipe and the article's recipe have them."""
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=fused
    )


def build_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Constant after a linear rise; the rise is at most a tenth of the run, so that a short run learns too."""
    from diffusers.optimization import get_constant_schedule_with_warmup  # imports slowly, so only here

    return get_constant_schedule_with_warmup(optimizer, min(config.warmup_steps, total_steps // 10))
