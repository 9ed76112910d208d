"""Preservation in the loop: which steps, which text, its gradient beside the other's, its price, a run's key."""

import itertools
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.adapted import FixedLinear
from wantune.tests.support.runs import driven
from wantune.tests.support.small_model import NAME, SmallModel
from wantune.trainer.base.errors import UserError
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded.batches import BucketSampler, read_batch
from wantune.trainer.encoded.cache import CachedDataset, CachedSample
from wantune.trainer.encoded.store import Store
from wantune.trainer.model.wan22 import WAN22_5B
from wantune.trainer.runs.events import StepDone
from wantune.trainer.settings.data import FIRST_FRAME
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from wantune.trainer.training import identity, inputs, loop
from wantune.trainer.training.run import Run

RANK, ALPHA, CHANNELS = 3, 6.0, WAN22_5B.latent_channels
WEIGHT, EVERY = 0.7, 3


class Model(SmallModel):
    """One Linear over what it is told: the latent, the text, and each frame's noise level."""

    family = WAN22_5B

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.compute_dtype = dtype  # with fp16 the loop scales the loss; the model computes in fp32 all the same

    def linear_sizes(self):
        return {NAME: (CHANNELS, CHANNELS)}

    def linears(self):
        generator = torch.Generator().manual_seed(9)
        return {NAME: FixedLinear(torch.randn(CHANNELS, CHANNELS, generator=generator) / 7)}

    @contextmanager
    def attached(self, adapter, linears, plan, memory):
        self._weight = linears[NAME].weight
        with super().attached(adapter, linears, plan, memory) as notes:
            yield notes

    def velocity(self, x_BCFHW, t_B, conditions):
        return self._forward(self.told(x_BCFHW, t_B, conditions)).movedim(-1, 1)

    @staticmethod
    def told(x_BCFHW, t_B, conditions):
        """Channels last."""
        known_BF = conditions.get("known", torch.zeros(len(t_B), x_BCFHW.shape[2]))
        beside = conditions["text"].mean((1, 2))[:, None] + t_B[:, None] * (1 - known_BF)
        return (x_BCFHW + beside[:, None, :, None, None]).movedim(1, -1)


@pytest.fixture
def dataset(tmp_path):
    """Stills and clips whose first frame is given, with two captions and three prior captions, some with a mask."""
    store, generator = Store(tmp_path / "cache"), torch.Generator().manual_seed(0)

    def text(name: str, value: float) -> dict:
        path = store.path("texts", name)
        store.write(path, torch.full((2, WAN22_5B.text_width), value))
        return {"text": path}

    captions = tuple(text(f"caption {number}", 0.5 + number) for number in range(2))
    priors = tuple(text(f"prior {number}", -0.5 - number) for number in range(3))
    mask, samples = store.path("masks", "mask"), []
    store.write(mask, torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
    for number in range(5):
        frames = 1 + 2 * (number % 2)
        latent, known = store.path("latents", str(number)), store.path("known", str(frames))
        store.write(latent, torch.randn(CHANNELS, frames, 2, 2, generator=generator))
        store.write(known, (torch.arange(frames) == 0).float() * (frames > 1))
        samples.append(CachedSample(
            f"{number}.png", Bucket(4 * frames - 3, 32, 32), 1, (latent,), captions, windows=({"known": known},),
            mask_path=mask if number != 2 else None, content=str(number), prior_captions=priors))
    return CachedDataset(WAN22_5B, tuple(samples), (), "digest", "zwx", ("",) * 5, condition=FIRST_FRAME,
                         prior_digest="priors")


def config(objective: ObjectiveConfig | None = None, **settings) -> TrainConfig:
    return TrainConfig(**{
        "epochs": 99, "max_steps": 7, "batch_size": 2, "learning_rate": 3e-2, "seed": 4,
        "lora": LoraConfig(rank=RANK, alpha=ALPHA), "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0),
        "optimizer": OptimizerConfig(accumulation=2, max_grad_norm=0.5, warmup_steps=0),
        "objective": objective or ObjectiveConfig(weighting="bell", preserve=WEIGHT, preserve_every=EVERY), **settings})


def steps_of(run: Run) -> list[StepDone]:
    return [event for event in driven(run) if isinstance(event, StepDone)]


def expected(model: Model, batches: list[inputs.Inputs], a: torch.Tensor, b: torch.Tensor):
    """(gradients of A and B, mean of what is preserved), by autograd, with nothing of the code under test."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    total, preserved = 0, []
    for batch in batches:
        known_BF = batch.conditions["known"]
        open_B1F11 = (1 - known_BF)[:, None, :, None, None]
        t = batch.t_B[:, None, None, None, None] * open_B1F11
        x = (1 - t) * batch.latent_BCFHW + t * batch.noise_BCFHW

        def velocity(conditions, delta, x=x, batch=batch):
            weight = model._weight + delta
            return (model.told(x, batch.t_B, conditions) @ weight.T).movedim(-1, 1)

        error = (velocity(batch.conditions, ALPHA / RANK * b @ a) - (batch.noise_BCFHW - batch.latent_BCFHW)) ** 2
        mask = torch.ones(len(t), 1, 1, 2, 2) if batch.mask_B11HW is None else batch.mask_B11HW
        weight = (mask * open_B1F11).expand_as(error)
        loss_B = (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
        total = total + (loss_B * batch.weight_B).sum() / batch.num_samples
        if batch.prior is not None:
            said = {**batch.conditions, **batch.prior}
            change = (velocity(said, ALPHA / RANK * b @ a) - velocity(said, 0)) ** 2
            kept = open_B1F11.expand_as(change)
            kept_B = (change * kept).flatten(1).sum(1) / kept.flatten(1).sum(1)
            total = total + WEIGHT * EVERY * kept_B.sum() / batch.num_samples
            preserved += kept_B.tolist()
    return torch.autograd.grad(total, (a, b)), sum(preserved) / len(preserved) if preserved else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["", "loss scaled"])
def test_the_gradient_is_that_of_the_sum_of_both_losses(dataset, tmp_path, monkeypatch, dtype):
    """Over masks, given frames, several batches a step and weights by noise level; and the log has its value."""
    found, clip = [], loop.Trainer._clip

    def noted(trainer):
        values = [value.detach().clone() for value in trainer.adapter.parameters]
        norm = clip(trainer)
        # they are clipped by now, together
        share = min(1.0, 0.5 / (norm.item() + 1e-6))  # as torch does it
        gradients = trainer.adapter.split([piece.grad / share for piece in trainer.adapter.trained])
        found.append((values, [flat.view_as(value) for flat, value in zip(gradients, values, strict=True)]))
        return norm

    monkeypatch.setattr(loop.Trainer, "_clip", noted)
    model = Model(dtype)
    steps = steps_of(Run(model, dataset, "run", config(), tmp_path / "runs"))
    drawn = inputs.of_steps(config(), model, BucketSampler(dataset.by_content().samples, 2, 4), 0)
    for number, (step, (values, gradients)) in enumerate(zip(steps, found, strict=True)):
        batches = [next(drawn)]
        while not batches[-1].is_last:
            batches.append(next(drawn))
        wanted, preserved = expected(model, batches, *values)
        for gradient, theirs in zip(gradients, wanted, strict=True):
            assert (gradient - theirs).norm() <= 1e-5 * theirs.norm()
        is_due = number % EVERY == 0
        assert (step.preservation is None) != is_due
        assert not is_due or step.preservation == pytest.approx(preserved, rel=1e-4, abs=1e-12)
    assert steps[0].preservation < 1e-12, "but for rounding, an untrained adapter changes nothing"
    assert min(steps[3].preservation, steps[6].preservation) > 1e-6


def test_prior_captions_are_taken_in_turn_on_the_samples_own_latent(dataset):
    settings = config(ObjectiveConfig(preserve=1.0, preserve_every=1))
    seen = {}
    drawn = inputs.of_steps(settings, Model(), BucketSampler(dataset.samples, 2, 4), 0)
    for batch in itertools.islice(drawn, 24):
        assert batch.prior.keys() == {"text"}, "the frames are there already"
        for name, text_LD in zip(batch.names, batch.prior["text"], strict=True):
            seen.setdefault(name, []).append(text_LD.mean().item())
    for values in seen.values():
        assert values == [-0.5 - number % 3 for number in range(len(values))]


def test_only_the_steps_that_preserve_prepare_for_it_wherever_a_run_goes_on(dataset):
    for first in range(4):
        drawn = inputs.of_steps(config(), Model(), BucketSampler(dataset.samples, 2, 4), first)
        step = first
        for batch in itertools.islice(drawn, 12):
            assert (batch.prior is not None) == (step % EVERY == 0)
            step += batch.is_last


def test_weight_0_is_training_as_it_was(dataset, tmp_path):
    plain, off = (Run(Model(), dataset, "run", config(objective), tmp_path / name) for name, objective in (
        ("plain", ObjectiveConfig()), ("off", ObjectiveConfig(preserve_every=5))))
    assert plain.folder.path.name == off.folder.path.name, "the same key"
    assert [step.loss for step in steps_of(plain)] == [step.loss for step in steps_of(off)]
    assert all(torch.equal(value, off.lora[name]) for name, value in plain.lora.items())


def test_what_is_dropped_for_what_is_learned_is_the_same_with_it(dataset, tmp_path):
    """The untrained adapter changes nothing, so nothing is preserved in the first step, also where dropout is on."""
    settings = replace(config(), lora=LoraConfig(rank=RANK, dropout=0.4))
    with_it = steps_of(Run(Model(), dataset, "with", settings, tmp_path / "runs"))
    without = steps_of(Run(Model(), dataset, "without", replace(
        settings, objective=ObjectiveConfig(weighting="bell")), tmp_path / "runs"))
    assert with_it[0].preservation == 0
    # the step after the first one that changes anything is the fifth
    assert [step.losses for step in with_it[:4]] == [step.losses for step in without[:4]]
    assert with_it[4].losses != without[4].losses


def test_a_run_depends_on_prior_captions_only_where_they_are_trained_on(dataset):
    other = replace(dataset, prior_digest="others")

    def key(settings: ObjectiveConfig, data=dataset) -> str:
        return identity.keys(config(settings), data, "base")[0]

    on = ObjectiveConfig(preserve=1.0)
    assert key(ObjectiveConfig()) == key(ObjectiveConfig(), other) == key(ObjectiveConfig(preserve_every=4))
    assert len({key(ObjectiveConfig()), key(on), key(on, other), key(replace(on, preserve_every=2)),
                key(replace(on, preserve=2.0))}) == 5


def test_a_cache_without_prior_captions_is_refused(dataset, tmp_path):
    samples = tuple(replace(sample, prior_captions=()) for sample in dataset.samples)
    read_batch([samples[0].visit(0)], WAN22_5B.conditions)
    with pytest.raises(UserError, match="png was cached without prior captions; run Cache Latents again"):
        steps_of(Run(Model(), replace(dataset, samples=samples), "run", config(), tmp_path / "runs"))


def test_what_is_preserved_and_not_finite_changes_no_weight(tmp_path):
    """The second prediction in training is that of the first step's prior caption."""
    dataset = small_model.dataset(tmp_path / "cache")
    model = SmallModel(not_finite=(2,))
    one, two = steps_of(Run(model, dataset, "run", TrainConfig(
        max_steps=2, lora=LoraConfig(rank=2), objective=ObjectiveConfig(preserve=1.0, preserve_every=1)),
        tmp_path / "runs"))
    assert one.is_skipped and not math.isfinite(one.preservation) and math.isfinite(one.loss)
    assert not two.is_skipped and two.preservation == 0, "the adapter is untrained"
