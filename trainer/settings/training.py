"""How a LoRA is trained: frozen records, validated on construction, written to a run's config.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, is_dataclass

from ..base.errors import UserError
from .adapter import LoraConfig
from .checks import check_choice, check_least
from .memory import EXACT, MemoryConfig

AS_SAMPLED = "as sampled"

TIMESTEPS = ("logit_normal", "uniform", "mode", "beta", AS_SAMPLED)
"""Distributions of noise levels; training/objective.py gives the formulas and their sources."""

WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "bell")
"""Weights of the loss by noise level; training/objective.py gives the formulas and their sources."""

LOSSES = ("mse", "huber")

WHOLE = "whole"

WINDOWS = (WHOLE, "high expert", "low expert")
"""Noise levels of the whole model, or of one expert of Wan2.2 A14B; training/experts.py says which those are."""

BY_TURNS = "by turns"

ORDERS = (BY_TURNS, "high, then low")
"""In which order the experts of a pair are trained."""

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion", "came", "schedule_free")

SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Which noise levels t in 0..1 are trained on, and how the loss is computed; formulas in training/objective.py."""

    timesteps: str = "logit_normal"
    """One of TIMESTEPS."""
    logit_mean: float = 0.0
    """Mean of logit(t) in logit_normal; above 0 means more noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(t) in logit_normal."""
    mode_scale: float = 1.29
    """The parameter s of mode."""
    beta_a: float = 1.0
    """The parameter a of beta; larger means more noise."""
    beta_b: float = 1.0
    """The parameter b of beta; larger means less noise."""
    shift: float = 1.0
    """t becomes shift t / (1 + (shift - 1) t); 1 = none."""
    resolution_shift: bool = False
    """Shift further by the number of tokens: larger pictures need more noise to be destroyed."""
    min_t: float = 0.0
    """No noise level below this is trained on."""
    max_t: float = 1.0
    """No noise level above this is trained on."""
    window: str = WHOLE
    """One of WINDOWS; min_t and max_t count inside it."""
    boundary: float = 0.0
    """The noise level at which one expert takes over from the other; 0 = that of the model."""
    stratified: bool = False
    """Spread the noise levels of the samples of an optimizer step evenly over the distribution."""
    weighting: str = "none"
    """One of WEIGHTINGS."""
    loss: str = "mse"
    """One of LOSSES."""
    huber_delta: float = 1.0
    """Errors above this count linearly."""
    noise_offset: float = 0.0
    """Standard deviation of further noise that is constant over each channel of a sample; 0 = none."""
    stills_min_t: float = 0.0
    """Of samples of one frame no noise level below this is trained on, nor below min_t."""
    stills_max_t: float = 1.0
    """Nor one above this."""
    clips_min_t: float = 0.0
    """The same of samples of several frames."""
    clips_max_t: float = 1.0
    sigmas: tuple[float, ...] = ()
    """Of AS_SAMPLED: the noise levels at which the user samples, falling; those of n steps are n + 1."""
    preserve: float = 0.0
    """Weight of the loss that holds the model to what it was on prior captions (training/preservation.py); 0 = off."""
    preserve_every: int = 4
    """It is computed once in so many optimizer steps, and then counts so many times."""

    def bounds(self, is_clip: bool) -> tuple[float, float]:
        """The least and the largest noise level that stills, or clips, are trained on."""
        low, high = (self.clips_min_t, self.clips_max_t) if is_clip else (self.stills_min_t, self.stills_max_t)
        return max(self.min_t, low), min(self.max_t, high)

    def __post_init__(self) -> None:
        check_choice(self, timesteps=TIMESTEPS, weighting=WEIGHTINGS, loss=LOSSES, window=WINDOWS)
        check_least(self, logit_mean=-10, logit_std=0.01, beta_a=0.05, beta_b=0.05, shift=0.01, huber_delta=1e-6,
                     noise_offset=0, preserve=0, preserve_every=1)
        if not -1 <= self.mode_scale <= 1.75:  # beyond, t is no longer monotonous in u (arXiv:2403.03206, section 3.1)
            raise UserError(f"mode_scale is {self.mode_scale}; choose -1 to 1.75, for example 1.29.")
        if not 0 <= self.min_t < self.max_t <= 1:
            raise UserError(f"The noise window is {self.min_t} to {self.max_t}; choose 0 <= min_t < max_t <= 1.")
        if not 0 <= self.boundary < 1:
            raise UserError(f"boundary is {self.boundary}; choose more than 0 and less than 1, such as 0.875, or 0 for "
                            "that of the model.")
        for kind, is_clip in (("stills", False), ("clips", True)):
            self._check_window(kind, is_clip)
        if self.timesteps == AS_SAMPLED and (self.shift != 1 or self.resolution_shift):
            raise UserError(f"timesteps is {AS_SAMPLED}, where the shift is that of your sampler; set shift to 1 and "
                            "switch resolution_shift off, or choose other timesteps.")
        if self.sigmas:
            self._check_sigmas()

    def _check_window(self, kind: str, is_clip: bool) -> None:
        low, high = getattr(self, f"{kind}_min_t"), getattr(self, f"{kind}_max_t")
        if not 0 <= low < high <= 1:
            raise UserError(f"The noise window of {kind} is {low} to {high}; choose 0 <= {kind}_min_t < {kind}_max_t "
                            "<= 1.")
        least, most = self.bounds(is_clip)
        if not least < most:
            raise UserError(f"Of the noise window {self.min_t} to {self.max_t} nothing is left for {kind}, whose own "
                            f"is {low} to {high}; choose windows that overlap.")

    def _check_sigmas(self) -> None:
        falling = all(before >= after for before, after in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not (falling and 1 >= self.sigmas[0] > self.sigmas[-1] >= 0):
            raise UserError(f"The noise levels of your sampler are {', '.join(map('{:g}'.format, self.sigmas))}; they "
                            "must fall and lie from 1 to 0, so choose another scheduler, or other timesteps.")
        for kind, is_clip in (("stills", False), ("clips", True)):
            low, high = self.bounds(is_clip)
            if high <= self.sigmas[-1] or low >= self.sigmas[0]:
                raise UserError(f"Your graph samples from {self.sigmas[0]:g} to {self.sigmas[-1]:g}, of which nothing "
                                f"lies in the noise window of {kind}, {low} to {high}; choose a wider one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The optimizer, the learning rate schedule, gradient accumulation and clipping, and the moving average."""

    name: str = "adamw"
    """One of OPTIMIZERS."""
    beta1: float = 0.9
    beta2: float = 0.99
    """Both betas are those of the preset "seed article" (presets.py) and of diffusion-pipe, which it used."""
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: str = "constant"
    """One of SCHEDULES: of the learning rate, after warm-up."""
    warmup_steps: int = 10
    """The learning rate rises linearly over so many optimizer steps; 0 = none."""
    cycles: int = 1
    """Number of cycles of cosine_with_restarts."""
    power: float = 1.0
    """The exponent of polynomial."""
    accumulation: int = 1
    """Batches whose gradients are accumulated into one optimizer step."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm when its norm is larger; 0 = never."""
    ema_decay: float = 0.0
    """Decay of the moving average (EMA) of the adapter's parameters; 0 = no average."""
    use_average: bool = True
    """Save and measure the average where there is one; False: the trained parameters, and the average is only kept up
    to date."""

    @property
    def depends_on_length(self) -> bool:
        """Whether a step depends on the number of steps of the whole run."""
        return self.schedule != "constant"

    def __post_init__(self) -> None:
        check_choice(self, name=OPTIMIZERS, schedule=SCHEDULES)
        check_least(self, eps=0, weight_decay=0, warmup_steps=0, cycles=1, power=0, accumulation=1, max_grad_norm=0)
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; choose 0 or more, below 1.")
        if self.name == "schedule_free" and not self.beta1:
            raise UserError("beta1 is 0, which schedule_free divides by; choose more than 0, for example 0.9.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """When checkpoints are saved, when the held-out loss is measured, and when that ends the run.

    None of it changes what a step of training does.
    """

    every_steps: int = 0
    """Save a checkpoint every so many optimizer steps; 0 = not by steps."""
    every_epochs: int = 0
    """Save one also every so many epochs; 0 = not by epochs: an epoch may be a few steps, a file hundreds of MB."""
    every_minutes: float = 1.0
    """Save one also every so many minutes, or more where saving would take more than 1 % of the time; 0 = not by
    time."""
    keep_last: int = 3
    """Keep so many of the newest checkpoints, first of all those by steps and epochs, and the best; others are
    deleted."""
    evaluate_steps: int = 0
    """Measure the held-out loss every so many optimizer steps; 0 = not by steps."""
    evaluate_epochs: int = 1
    """Measure it also every so many epochs; 0 = not by epochs."""
    early_stop: int = 0
    """End the run after so many evaluations in a row without a better one (`training.evaluate.Judge`); 0 = never."""

    def __post_init__(self) -> None:
        check_least(self, every_steps=0, every_epochs=0, every_minutes=0, keep_last=1, evaluate_steps=0,
                     evaluate_epochs=0, early_stop=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All settings of a run. Steps are optimizer steps."""

    epochs: int = 20
    """Passes over all samples x repeats."""
    max_steps: int = 0
    """Stop after so many steps; 0 = all epochs."""
    batch_size: int = 1
    """Samples of one bucket per batch; the last batch of a bucket may be shorter. 0 = as many as keep the device busy
    and fit under the fastest memory plan, chosen when the run is first begun (memory/batch_size.py); the learning rate
    is not adapted to it."""
    learning_rate: float = 1e-4
    gradient_checkpointing: bool = True
    """Keep of the forward pass what the memory allows, and compute the rest again in backward; False: keep all."""
    seed: int = 0
    """Of the adapter's initialization, the order of samples, dropout, the noise and the noise levels."""
    deterministic: bool = False
    """The same seed gives the same bits on a CUDA device too, where the backward of attention otherwise does not."""
    lora: LoraConfig = LoraConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    memory: MemoryConfig = MemoryConfig()

    def __post_init__(self) -> None:
        check_least(self, epochs=1, max_steps=0, batch_size=0, seed=0)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate is {self.learning_rate}; choose a positive number, for example 1e-4.")
        if self.objective.timesteps == AS_SAMPLED and not self.objective.sigmas:
            raise UserError(f"timesteps is {AS_SAMPLED}, but nothing tells how your graph samples; connect Preview "
                            "Settings to Train Wan LoRA, or choose other timesteps.")

    def to_dict(self) -> dict:
        """Plain data for config.json."""
        return asdict(self)

    def identity(self) -> dict:
        """The settings that change the trajectory of training, part of a run's key; its length, gradient checkpointing,
        the memory settings but for `products`, and the validation settings do not.

        A setting that later versions add is part of it only where it differs from its default, which must leave
        training as it was: so an update finds the runs of before.
        """
        told = {name: value for name, value in _told(self).items() if name not in _PASSING}
        if not self.objective.preserve:
            told["objective"].pop("preserve_every", None)
        return told if self.memory.products == EXACT else {**told, "products": self.memory.products}


def _told(record: object, prefix: str = "") -> dict:
    told = {}
    for field in fields(record):
        name, value = f"{prefix}{field.name}", getattr(record, field.name)
        if is_dataclass(value):
            value = _told(value, f"{name}.")
            if value:
                told[field.name] = value
        elif name in _FIRST or value != field.default:
            told[field.name] = value
    return told


_PASSING = frozenset(("epochs", "max_steps", "gradient_checkpointing", "deterministic", "validation", "memory"))
"""Settings that do not change the trajectory."""

_FIRST = frozenset(
    "epochs max_steps batch_size learning_rate gradient_checkpointing seed "
    "lora.rank lora.alpha lora.kind lora.dropout lora.targets lora.first_block lora.last_block lora.lokr_factor "
    "lora.start objective.timesteps objective.logit_mean objective.logit_std objective.mode_scale objective.beta_a "
    "objective.beta_b objective.shift objective.resolution_shift objective.min_t objective.max_t objective.stratified "
    "objective.weighting objective.loss objective.huber_delta objective.noise_offset optimizer.name optimizer.beta1 "
    "optimizer.beta2 optimizer.eps optimizer.weight_decay optimizer.schedule optimizer.warmup_steps optimizer.cycles "
    "optimizer.power optimizer.accumulation optimizer.max_grad_norm optimizer.ema_decay optimizer.use_average".split())
"""The settings there were when keys were defined: always part of them, whatever their defaults will be."""
