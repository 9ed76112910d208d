"""What a run tells whoever drives it: frozen records that become JSON lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """Before the first step."""

    total_steps: int
    steps_per_epoch: int
    num_modules: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """After each optimizer step."""

    step: int
    total_steps: int
    epoch: int
    """Counted from 1."""
    loss: float
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    timesteps: tuple[float, ...]
    """Noise level in 0..1 of each sample."""
    seconds: float
    samples_per_second: float


@dataclass(frozen=True, slots=True)
class Finished:
    """After the last step."""

    step: int
    seconds: float


Event = Started | StepDone | Finished


def to_json(event: Event) -> dict:
    """{"event": "StepDone", ...}"""
    return {"event": type(event).__name__, **asdict(event)}
