"""The events that a run yields: frozen records that become JSON lines."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

BASE = "base"
"""The name of the previews without the adapter."""


@dataclass(frozen=True, slots=True)
class Started:
    """Before the first step, or the first after an interruption."""

    step: int
    """Optimizer steps done before."""
    total_steps: int
    steps_per_epoch: int
    num_modules: int
    num_parameters: int
    passed_over: tuple[str, ...] = ()
    """Checkpoints that could not be used, each in a sentence."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """After each optimizer step."""

    step: int
    total_steps: int
    epoch: int
    """Counted from 1."""
    loss: float
    """Unweighted mean over the samples; not finite if the step was skipped for it."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    timesteps: tuple[float, ...]
    """Noise level in 0..1 of each sample."""
    losses: tuple[float, ...]
    """Of each sample."""
    is_skipped: bool
    """The loss or the gradient was not finite, and nothing was changed."""
    seconds: float
    samples_per_second: float
    preservation: float | None = None
    """Mean square of what the adapter changes for prior captions, unweighted; None where the step did not measure it.
    """


@dataclass(frozen=True, slots=True)
class Evaluated:
    """After measuring on the held-out files."""

    step: int
    loss: float
    """Mean over files and noise levels."""
    levels: tuple[tuple[float, float], ...]
    """(noise level, mean loss) each."""
    base_loss: float
    """Held-out loss of the model without the adapter."""
    is_best: bool
    drift: float | None = None
    """How far the model has moved where the LoRA is not called (`training.meters.drift`); None where it is unknown."""
    learned: float | None = None
    """How far the model has come to the held-out files (`training.meters.learned`); None in logs from before."""


@dataclass(frozen=True, slots=True)
class Saved:
    """After writing a checkpoint."""

    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Previewed:
    """After sampling previews; `files` are videos, by their paths relative to the run's folder."""

    step: int
    name: str
    files: tuple[str, ...]
    motion: tuple[float | None, ...] = ()
    """Of each video the mean change from one frame to the next, in levels of 0..255; empty for pictures."""
    base_motion: tuple[float | None, ...] = ()
    """The same of the model without the adapter, for the same prompts and seed; empty where that is not known."""
    likeness: tuple[float | None, ...] = ()
    """Of each video to the training pictures: -1..1, 1 for the same; empty without CLIP vision."""
    base_likeness: tuple[float | None, ...] = ()
    """As `base_motion`."""
    sampled: str = ""
    """Digest of all that the videos depend on but the adapter: only with the same one can they be compared."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the user should know of how the run goes on, in a sentence."""

    step: int
    """Optimizer steps done before."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Paused:
    """Where the caller asked for it: no step is under way, and the device may be used for something else.

    It is no part of what happened, and not in the log.
    """

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """After the last step; `reason` is "done", "stopped" by the user, or "early stop"."""

    step: int
    seconds: float
    reason: str
    skipped: int
    """Steps whose loss or gradient was not finite."""


Event = Started | StepDone | Evaluated | Saved | Previewed | Noted | Paused | Finished


def to_json(event: Event) -> dict:
    """{"event": "StepDone", ...}; numbers that are not finite, which JSON lacks, become null."""
    return {"event": type(event).__name__, **{name: _finite(value) for name, value in asdict(event).items()}}


def _finite(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
