"""The ways to train that learning.py compares, each a change of one thing in the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import gcd

from ..tests.world import evaluate
from ..tests.world.concept import SAMPLING_STEPS, other_cases
from ..trainer.base.errors import UserError
from ..trainer.settings.training import AS_SAMPLED, TrainConfig, ValidationConfig

VISITS = (400, 800, 1200, 2400, 4800)
"""Pictures seen when the default is examined. The preset "person, pictures" shows twelve of them 2,400 times in all."""
FEWER_VISITS = (800, 2400)
"""When the others are."""
BATCH_SIZE, RATE, RANK = 4, 5e-4, 32
"""Of the default: the preset, in batches. Its rate is five times that of the preset, for a model a sixth as wide as the
smallest Wan: between the root of that (LoRA+, arXiv:2402.12354) and all of it (arXiv:2203.03466, for Adam)."""
CORE = "core"
OTHER_PROMPTS = tuple(case.prompt for case in other_cases(9, seed=1))
"""What a user would ask the model to keep: a video of each other digit, drawn apart from those of the examination."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train."""

    name: str
    group: str
    """Of the variants that are shown in one plot, beside the default."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the default, by dotted name, such as `objective.shift`."""
    num_clips: int = 0
    """Beside the twelve stills."""
    data: Mapping[str, object] = field(default_factory=dict)
    """Fields of DatasetConfig that differ from the default."""
    visits: tuple[int, ...] = FEWER_VISITS
    trainer: str = "ours"
    """Or CORE: ComfyUI's TrainLoraNode; of `changes` it takes batch_size, learning_rate and lora.rank."""

    @property
    def batch_size(self) -> int:
        return self.changes.get("batch_size", BATCH_SIZE)

    @property
    def steps(self) -> tuple[int, ...]:
        """Optimizer steps after which it is examined."""
        return tuple(visits // self.batch_size for visits in self.visits)

    def config(self, seed: int) -> TrainConfig:
        """As TrainConfig.

        Raises:
            Unavailable: this version has no such setting, or does not take its value.
        """
        every = gcd(*self.steps)
        config = TrainConfig(
            epochs=100_000, max_steps=self.steps[-1], batch_size=BATCH_SIZE, learning_rate=RATE, seed=seed,
            validation=ValidationConfig(every_steps=every, every_minutes=0, keep_last=10_000, evaluate_epochs=0))
        for name, value in {"lora.rank": RANK, "lora.alpha": self.changes.get("lora.rank", RANK),
                            **self.changes}.items():
            config = _changed(config, name.split("."), value)
        return config


class Unavailable(Exception):
    """What a variant asks for is not in this version."""


def _changed(record, names: list[str], value: object):
    name, *rest = names
    if name not in {each.name for each in fields(record)}:
        raise Unavailable(f"there is no setting {name}")
    try:
        return replace(record, **{name: _changed(getattr(record, name), rest, value) if rest else value})
    except UserError as error:
        raise Unavailable(str(error)) from None


def variants() -> Iterator[Variant]:
    """All of them, the default first."""
    yield Variant(name="default", group="", visits=VISITS)
    yield Variant(name="article, in proportion", group="recipes", changes={"batch_size": 1, "learning_rate": RATE / 5},
                  visits=(800, 2400, 9600))
    yield Variant(name="core's node, its defaults", group="recipes", trainer=CORE,
                  changes={"learning_rate": 5e-4, "lora.rank": 8, "batch_size": 1})
    yield Variant(name="core's node, our rate, rank and batch", group="recipes", trainer=CORE)
    yield from _numbers()
    yield from _noise_levels()
    yield from _clips()
    for name, value in (("0.99", 0.99), ("0.995", 0.995)):
        yield Variant(name=f"moving average {name}", group="average", changes={"optimizer.ema_decay": value})
    yield from _preservation()
    for kind in ("rslora", "lokr", "loha", "dora"):
        yield Variant(name=f"kind {kind}", group="kinds", changes={"lora.kind": kind})
    for targets in ("attention", "self_attn", "cross_attn", "ffn"):
        yield Variant(name=f"only {targets}", group="targets", changes={"lora.targets": targets})


def _numbers() -> Iterator[Variant]:
    for rank in (4, 8, 16, 64):
        yield Variant(name=f"rank {rank}", group="ranks", changes={"lora.rank": rank})
    for rate in (1e-4, 2.5e-4, 1e-3, 2e-3, 4e-3):
        yield Variant(name=f"rate {rate:g}", group="rates", changes={"learning_rate": rate})
    for size in (1, 2, 8):
        yield Variant(name=f"batches of {size}", group="batch sizes", changes={"batch_size": size})


def _noise_levels() -> Iterator[Variant]:
    for shift in (3.0, 5.0):
        yield Variant(name=f"logit-normal, shift {shift:g}", group="noise levels", changes={"objective.shift": shift})
    for shift in (1.0, 3.0, 5.0):
        yield Variant(name=f"uniform, shift {shift:g}" if shift > 1 else "uniform", group="noise levels",
                      changes={"objective.timesteps": "uniform", "objective.shift": shift})
    yield Variant(name="as sampled", group="noise levels", changes={
        "objective.sigmas": tuple(round(sigma, 6) for sigma in evaluate.sigmas(SAMPLING_STEPS)),
        "objective.timesteps": AS_SAMPLED})


def _preservation() -> Iterator[Variant]:
    for weight in (0.3, 1.0, 3.0):
        for every in (1, 4):
            yield Variant(name=f"preserve {weight:g}, every {every}", group="preservation",
                          changes={"objective.preserve": weight, "objective.preserve_every": every})
    yield Variant(name="preserve 1 on the other digits", group="preservation",
                  changes={"objective.preserve": 1.0}, data={"preserve_prompts": OTHER_PROMPTS})


def _clips() -> Iterator[Variant]:
    low = {"objective.stills_max_t": 0.7}
    yield Variant(name="stills below 0.7", group="stills and clips", changes=low)
    yield Variant(name="4 clips", group="stills and clips", num_clips=4, visits=VISITS)
    for every in (1, 4):
        yield Variant(name=f"4 clips, preserve 1, every {every}", group="stills and clips", num_clips=4,
                      changes={"objective.preserve": 1.0, "objective.preserve_every": every}, visits=(2400, 4800))
    yield Variant(name="4 clips, stills below 0.7", group="stills and clips", num_clips=4, changes=low)
