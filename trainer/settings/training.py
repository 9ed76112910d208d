"""How a LoRA is trained: frozen records, validated on construction, written to a run's config.json."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass

from ..base.errors import UserError
from .checks import check_choice, check_least
from .memory import EXACT, MemoryConfig

MAX_RANK = 1024

ADAPTERS = ("lora", "rslora", "lokr", "loha")
"""Kinds of adapter; model/adapters.py gives the formulas and their sources."""

TIMESTEPS = ("logit_normal", "uniform", "mode", "beta")
"""Distributions of noise levels; training/objective.py gives the formulas and their sources."""

WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "bell")
"""Weights of the loss by noise level; training/objective.py gives the formulas and their sources."""

LOSSES = ("mse", "huber")

WHOLE = "whole"

WINDOWS = (WHOLE, "high expert", "low expert")
"""Noise levels of the whole model, or of one expert of Wan2.2 A14B; training/experts.py says which those are."""

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion", "came", "schedule_free")

SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The adapter: its kind and size, and which Linears of the blocks get one."""

    rank: int = 32
    """Inner dimension of LoRA's B @ A, of LoHa's two products, or of LoKr's second factor."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; by alpha / sqrt(rank) in rsLoRA; not at all in LoKr's full form."""
    kind: str = "lora"
    """One of ADAPTERS."""
    dropout: float = 0.0
    """In training only. Probability that an input of LoRA's A is zeroed, drawn for each token; for LoKr and LoHa, that
    an output of the adapter is zeroed, drawn once for all tokens of the batch."""
    targets: str = "all"
    """all: the ten Linears of each block; attention: eight of them, without ffn.0 and ffn.2; anything else is a regular
    expression that must be found in a module's name, such as `blocks.3.self_attn.q`."""
    first_block: int = 0
    """Blocks before this one, counted from 0, get no adapter."""
    last_block: int = -1
    """Blocks after this one get no adapter; -1 = there are none after it."""
    lokr_factor: int = 16
    """Width of LoKr's first factor: 4 is a large adapter, 16 a small one; -1 = the width nearest to a square. From a
    rank of half the second factor's width on, that factor is trained as one full matrix (LyCORIS' full form)."""
    start: str = ""
    """Digest of the LoRA that training continues from (`continued` in lora/file.py); empty = a new LoRA."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UserError(f"rank is {self.rank}; choose 1 to {MAX_RANK}, for example 32.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"alpha is {self.alpha}; choose a positive number, for example the rank.")
        check_choice(self, kind=ADAPTERS)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; choose 0 or more, below 1, for example 0.05.")
        if self.lokr_factor != -1 and not 2 <= self.lokr_factor <= MAX_RANK:
            raise UserError(f"lokr_factor is {self.lokr_factor}; choose 2 to {MAX_RANK}, or -1.")
        self._check_targets()

    def _check_targets(self) -> None:
        if not self.targets.strip():
            raise UserError("targets is empty; choose all, attention, or a regular expression such as self_attn|ffn.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(f"targets is {self.targets!r}, which is no regular expression ({error}); choose all, "
                            "attention, or one such as self_attn|ffn.") from None
        check_least(self, first_block=0, last_block=-1)
        if self.last_block != -1 and self.last_block < self.first_block:
            raise UserError(f"The blocks are {self.first_block} to {self.last_block}; choose last_block at or after "
                            "first_block, or -1 for all that follow.")

    @property
    def file_alpha(self) -> float:
        """The alpha written to a file: readers scale by alpha / rank, so for rsLoRA it is alpha sqrt(rank)."""
        return self.alpha * math.sqrt(self.rank) if self.kind == "rslora" else self.alpha


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

    def __post_init__(self) -> None:
        check_choice(self, timesteps=TIMESTEPS, weighting=WEIGHTINGS, loss=LOSSES, window=WINDOWS)
        check_least(self, logit_mean=-10, logit_std=0.01, beta_a=0.05, beta_b=0.05, shift=0.01, huber_delta=1e-6,
                     noise_offset=0)
        if not -1 <= self.mode_scale <= 1.75:  # beyond, t is no longer monotonous in u (arXiv:2403.03206, section 3.1)
            raise UserError(f"mode_scale is {self.mode_scale}; choose -1 to 1.75, for example 1.29.")
        if not 0 <= self.min_t < self.max_t <= 1:
            raise UserError(f"The noise window is {self.min_t} to {self.max_t}; choose 0 <= min_t < max_t <= 1.")
        if not 0 <= self.boundary < 1:
            raise UserError(f"boundary is {self.boundary}; choose more than 0 and less than 1, such as 0.875, or 0 for "
                            "that of the model.")


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
    """End the run after so many evaluations in a row without a better held-out loss; 0 = never."""

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
