"""What a checkpoint keeps of a trainer, and when one is due by time: so often that little is lost, and so seldom that
it costs little."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import BucketSampler, Position
from .evaluate import Judge
from .optim import Averages
from .results import Results

SHARE_OF_SAVING = 0.01
"""Of the time, at most, that checkpoints written by time take."""


class SavingTime:
    """Every so many minutes, or less often where writing takes long; 0 = never by time."""

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._saved, self._seconds = time.monotonic(), 0.0

    def took(self, seconds: float) -> None:
        """One was written just now."""
        self._saved, self._seconds = time.monotonic(), seconds

    @property
    def is_due(self) -> bool:
        """Whether it is time for one."""
        pause = max(60 * self._minutes, self._seconds / SHARE_OF_SAVING)
        return bool(self._minutes) and time.monotonic() - self._saved >= pause


class Trainer(Protocol):
    """What of loop.py's is kept."""

    step: int
    position: Position
    sampler: BucketSampler
    results: Results
    judge: Judge
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: Averages


def state_of(trainer: Trainer) -> dict[str, Any]:
    """All that is needed to go on after the trainer's last step."""
    return {
        "step": trainer.step, "skipped": trainer.results.skipped, "position": trainer.position,
        "judge": trainer.judge.state_dict(), "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(), "averages": trainer.averages.state_dict(),
        "parameters": trainer.adapter.state_dict(),
    }


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Continue from a `state_of`."""
    trainer.step, trainer.results.skipped = state["step"], state["skipped"]
    trainer.judge.load_state_dict(state["judge"])
    trainer.adapter.load_state_dict(state["parameters"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.averages.load_state_dict(state["averages"])
    trainer.position = trainer.sampler.epoch, trainer.sampler.cursor = state["position"]
