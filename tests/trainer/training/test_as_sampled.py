"""Noise levels drawn as the user's graph samples, and windows of their own for stills and clips."""

import itertools
import json

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.small_model import SmallModel
from wantune.tests.trainer.training.test_timesteps import assert_same, draws, generator, uniform
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded.batches import BucketSampler
from wantune.trainer.settings.training import (
    AS_SAMPLED,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from wantune.trainer.training import inputs, objective
from wantune.trainer.training.run import Run

DISTILLED = (1.0, 0.9375, 0.833333, 0.625, 0.0)
"""Of four steps under shift 5, as LoRAs that need few steps are sampled with."""


def simple(steps: int, shift: float) -> tuple[float, ...]:
    """The noise levels of the scheduler "simple": evenly spaced ones, shifted."""
    even = [1 - step / steps for step in range(steps + 1)]
    return tuple(shift * t / (1 + (shift - 1) * t) for t in even)


def as_sampled(sigmas: tuple[float, ...] = DISTILLED, **settings) -> ObjectiveConfig:
    return ObjectiveConfig(timesteps=AS_SAMPLED, sigmas=sigmas, **settings)


def quantile(config: ObjectiveConfig, *shares: float) -> list[float]:
    return objective.quantile(config, torch.tensor(shares, dtype=torch.float64)).tolist()


# -- the distribution


def test_it_goes_through_the_sampler_s_levels_in_equal_shares():
    assert quantile(as_sampled(), 0, 0.25, 0.5, 0.75, 1) == pytest.approx(DISTILLED[::-1])
    assert quantile(as_sampled(), 0.125, 0.625) == pytest.approx([0.3125, (0.833333 + 0.9375) / 2])
    found = draws(as_sampled())
    for high, low in itertools.pairwise(DISTILLED):
        step = found[(found > low) & (found <= high)]
        assert len(step) / len(found) == pytest.approx(0.25, abs=0.01)
        assert_same((step - low) / (high - low), uniform(len(step)))


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [4, 20, 1000])
def test_a_step_s_ends_are_those_of_the_uniform_distribution_under_the_sampler_s_shift(steps, shift):
    shares = [step / steps for step in range(steps + 1)]
    under_shift = ObjectiveConfig(timesteps="uniform", shift=shift)
    config = as_sampled(simple(steps, shift))
    assert quantile(config, *shares) == pytest.approx(quantile(under_shift, *shares), abs=1e-12)
    if steps == 1000:
        assert_same(draws(config), draws(under_shift, seed=1))


def test_levels_that_come_twice_or_end_above_zero_are_taken():
    assert quantile(as_sampled((1.0, 0.8, 0.8, 0.0)), 1 / 3, 0.5, 2 / 3) == pytest.approx([0.8, 0.8, 0.8])
    found = draws(as_sampled((0.9, 0.5, 0.2)))
    assert found.min() >= 0.2 and found.max() <= 0.9


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.625, 1.0), (0.7, 0.9)])
def test_a_window_holds_what_is_left_when_all_other_draws_are_rejected(low, high):
    whole = draws(as_sampled(), 200_000, seed=3)
    windowed = draws(as_sampled(min_t=low, max_t=high), 20_000)
    assert windowed.min() >= low - 1e-7 and windowed.max() <= high + 1e-7
    assert_same(windowed, whole[(whole >= low) & (whole <= high)])


def test_stratified_draws_have_one_in_each_step_of_the_sampler():
    random = generator(1)
    for _ in range(100):
        t = objective.sample_timesteps(as_sampled(stratified=True), 4, random).sort().values
        assert all(low <= each <= high for each, (high, low) in zip(t, list(itertools.pairwise(DISTILLED))[::-1],
                                                                     strict=True))


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"shift": 3.0}, "timesteps is as sampled, where the shift is that of your sampler; set shift to 1"),
    ({"resolution_shift": True}, "switch resolution_shift off"),
    ({"sigmas": (0.0, 0.5, 1.0)}, "noise levels of your sampler are 0, 0.5, 1; they must fall"),
    ({"sigmas": (14.6, 1.0, 0.0)}, "they must fall and lie from 1 to 0, so choose another scheduler"),
    ({"sigmas": (0.5,)}, "they must fall"), ({"sigmas": (0.5, 0.5)}, "they must fall"),
    ({"sigmas": (float("nan"), 0.0)}, "they must fall"),
    ({"sigmas": (0.9, 0.5), "max_t": 0.4}, "Your graph samples from 0.9 to 0.5, of which nothing lies in the noise "
     "window of stills, 0.0 to 0.4"),
    ({"sigmas": (0.9, 0.5), "clips_min_t": 0.95}, "nothing lies in the noise window of clips, 0.95 to 1.0"),
])
def test_what_cannot_be_meant_is_told(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        as_sampled(**settings)


def test_without_a_sampler_nothing_begins():
    with pytest.raises(UserError, match="timesteps is as sampled, but nothing tells how your graph samples; connect "
                                        "Preview Settings to Train Wan LoRA"):
        TrainConfig(objective=ObjectiveConfig(timesteps=AS_SAMPLED))


# -- windows of stills and clips


def test_each_kind_is_drawn_from_its_own_window():
    config = ObjectiveConfig(stills_max_t=0.4, clips_min_t=0.3, max_t=0.9)
    assert config.bounds(is_clip=False) == (0.0, 0.4) and config.bounds(is_clip=True) == (0.3, 0.9)
    whole = draws(ObjectiveConfig(), 200_000, seed=3)
    for is_clip, (low, high) in ((False, (0.0, 0.4)), (True, (0.3, 0.9))):
        found = objective.sample_timesteps(config, 20_000, generator(), is_clip=is_clip).double()
        assert found.min() >= low and found.max() <= high
        assert_same(found, whole[(whole >= low) & (whole <= high)])


@pytest.mark.parametrize("settings", [{}, {"min_t": 0.1, "max_t": 0.95, "shift": 3.0}, {"timesteps": "mode"}], ids=str)
def test_without_windows_both_draw_the_very_numbers_of_before(settings):
    """The formula of before there were any: low and high are those of min_t and max_t."""
    config = ObjectiveConfig(**settings)
    u = objective.sample_uniform(config, 1000, generator())
    low, high = (objective._inverse(config, 0, t) for t in (config.min_t, config.max_t))
    expected = objective.quantile(config, low + (high - low) * u).float().clamp(
        max(config.min_t, 2.0**-24), min(config.max_t, 1 - 2.0**-24))
    for is_clip in (False, True):
        assert torch.equal(objective.timesteps_of(config, u, is_clip=is_clip), expected)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"stills_min_t": 0.5, "stills_max_t": 0.5}, "noise window of stills is 0.5 to 0.5; choose 0 <= stills_min_t < "),
    ({"clips_max_t": 1.5}, "noise window of clips is 0.0 to 1.5; choose 0 <= clips_min_t < clips_max_t <= 1"),
    ({"clips_min_t": -0.5}, "noise window of clips is -0.5 to 1.0"),
    ({"min_t": 0.875, "stills_max_t": 0.5}, "Of the noise window 0.875 to 1.0 nothing is left for stills, whose own is "
     "0.0 to 0.5; choose windows that overlap"),
    ({"max_t": 0.3, "clips_min_t": 0.3}, "nothing is left for clips"),
])
def test_windows_that_leave_nothing_are_told(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ObjectiveConfig(**settings)


def test_a_step_s_samples_get_the_window_of_their_kind(tmp_path):
    dataset = small_model.dataset(tmp_path / "cache", count=7)
    config = TrainConfig(batch_size=2, optimizer=OptimizerConfig(accumulation=3), objective=ObjectiveConfig(
        stills_max_t=0.4, clips_min_t=0.6, weighting="cosmap"))
    sampler = BucketSampler(dataset.samples, config.batch_size, config.seed)
    batches = list(itertools.islice(inputs.of_steps(config, SmallModel(), sampler, 0), 40))
    kinds = {False: 0, True: 0}
    for batch in batches:
        is_clip = batch.latent_BCFHW.shape[2] > 1
        kinds[is_clip] += 1
        assert all(t >= 0.6 if is_clip else t <= 0.4 for t in batch.timesteps), "and that is what the log says"
        assert torch.equal(batch.weight_B, objective.weight(config.objective, batch.t_B))
    assert min(kinds.values()) > 10


# -- a run


def opened(tmp_path, place: str = "runs", **settings) -> Run:
    config = TrainConfig(epochs=2, learning_rate=1e-2, lora=LoraConfig(rank=2), objective=ObjectiveConfig(**settings),
                         validation=ValidationConfig(every_minutes=0))
    dataset = small_model.dataset(tmp_path / "cache", held_out=2)
    with Run(SmallModel(), dataset, "run", config, tmp_path / place) as run:
        for _ in run.events():
            pass
    return run


def test_the_levels_and_windows_are_part_of_the_run_and_of_its_config(tmp_path):
    found = {name: opened(tmp_path, **settings) for name, settings in {
        "plain": {}, "four": {"timesteps": AS_SAMPLED, "sigmas": DISTILLED},
        "three": {"timesteps": AS_SAMPLED, "sigmas": simple(3, 5.0)}, "windows": {"stills_max_t": 0.5}}.items()}
    assert len({run.folder.path.name for run in found.values()}) == len(found)
    kept = json.loads((found["four"].folder.path / "config.json").read_text(encoding="utf-8"))["objective"]
    assert kept["timesteps"] == "as sampled" and kept["sigmas"] == list(DISTILLED)
    assert opened(tmp_path, timesteps=AS_SAMPLED, sigmas=DISTILLED).folder.path == found["four"].folder.path


def test_what_is_measured_on_held_out_files_does_not_depend_on_them(tmp_path):
    def first(run: Run) -> dict:
        lines = (run.folder.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return next(line for line in map(json.loads, lines) if line["event"] == "Evaluated")

    plain = first(opened(tmp_path))
    other = first(opened(tmp_path, timesteps=AS_SAMPLED, sigmas=DISTILLED, stills_max_t=0.5, clips_min_t=0.7))
    assert plain["step"] == other["step"] == 0 and plain["loss"] == other["loss"]
    assert plain["levels"] == other["levels"] and len(plain["levels"]) == 9
