"""Learned and drift: by hand, of the files alone, and through a run into its log, TensorBoard and best.json."""

import json
import math
from dataclasses import replace

import pytest
import torch

from wantune.tests.support import runs, small_model
from wantune.tests.trainer.training.test_evaluate import BUCKET, Model, by_hand, clips  # noqa: F401
from wantune.trainer.encoded.cache import CachedSample
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.model.wan22 import WAN22_5B
from wantune.trainer.runs import history
from wantune.trainer.settings.training import ObjectiveConfig, OptimizerConfig, TrainConfig, ValidationConfig
from wantune.trainer.training import meters, objective
from wantune.trainer.training.evaluate import Judge
from wantune.trainer.training.meters import DRIFT_LEVELS, TOP_LEVELS, drift, learned
from wantune.trainer.training.run import Run


@pytest.fixture
def samples(tmp_path):
    """Six files, each with a prior caption of its own and two that all share; the fourth has two windows."""
    store, random = Store(tmp_path / "cache"), torch.Generator().manual_seed(0)

    def write(kind, key, *shape):
        path = store.path(kind, key)
        if not path.exists():
            store.write(path, torch.randn(shape, generator=random))
        return path

    def sample(number):
        windows = 2 if number == 3 else 1
        priors = ({"text": write("texts", f"{number}", 2, 8)}, {"text": write("texts", "user", 4, 8)},
                  {"text": write("texts", "empty", 1, 8)})
        return CachedSample(
            name=f"{number}.png", bucket=BUCKET, repeats=1,
            latent_paths=tuple(write("latents", f"{number}{window}", 16, 1, 8, 12) for window in range(windows)),
            captions=({"text": write("texts", f"trigger {number}", 3, 8)},), prior_captions=priors)

    return [sample(number) for number in range(6)]


def drift_by_hand(taken, a: float) -> float:
    """With the velocities of Model, (1/2 + a) x + t + the text's mean: moved by a x."""
    moved = base = 0.0
    for first, sample in enumerate(taken):
        for number, level in enumerate(DRIFT_LEVELS, first):
            path = sample.latent_paths[number % len(sample.latent_paths)]
            latent, text = read_tensor(path), read_tensor(sample.prior_captions[number % 3]["text"])
            noise = torch.randn((1, *latent.shape), generator=objective.generator(path.stem))[0]
            x = ((1 - level) * latent + level * noise).double()
            moved += (a * x).square().mean().item()
            base += (0.5 * x + level + text.mean()).square().mean().item()
    return math.sqrt(moved / base)


def test_it_is_the_relative_change_of_the_velocity_on_the_prior_captions_in_turn(samples):
    model = Model(a=0.25)
    assert drift(model, model, samples[:4]) == pytest.approx(drift_by_hand(samples[:4], 0.25), rel=1e-5)
    assert len(model.seen) == 4 * 3 * 2 and model.is_on
    assert {level for level, *_ in model.seen} == set(DRIFT_LEVELS)
    assert sum(is_on for _, _, is_on, _ in model.seen) == 12
    assert drift(Model(a=0.0), model, samples) == 0.0
    assert drift(model, model, samples[:1], (0.9,)) != drift(model, model, samples[:1], (0.95,))


def test_learned_is_the_share_of_the_way_to_the_files_that_the_velocity_has_gone(clips):  # noqa: F811
    """By the losses alone, where a mask hides a part as well: the adapter moves the velocity of Model by a x."""
    model, expected = Model(a=0.25), []
    for level in TOP_LEVELS:
        base, tuned, back = (sum(by_hand(clip, level, a) for clip in clips) for a in (0.0, 0.25, -0.25))
        moved = (tuned + back) / 2 - base  # L(a) = L0 - 2 <a x, y - v0> + |a x|^2
        expected.append((base - tuned + moved) / (2 * base))
    found = learned(model, model, clips)
    assert found == pytest.approx(sum(expected) / 2, rel=1e-4) and found != 0
    assert len(model.seen) == 4 * 2 * 2 and model.is_on
    assert learned(Model(a=0.0), Model(a=0.0), clips) == 0.0
    assert learned(model, model, clips[::-1]) == pytest.approx(found) != learned(model, model, clips[:1])


def test_learned_is_1_where_the_adapter_arrives_and_what_it_does_besides_does_not_count(clips):  # noqa: F811
    """Half of the way is a half, with any change across it."""
    class Arriving(Model):
        share, across = 1.0, 0.0

        def velocity(self, x_BCFHW, t_B, conditions):
            clip = clips[0]
            latent = read_tensor(clip.latent_paths[0])[None]
            noise = objective.sample_noise(latent, objective.generator(clip.latent_paths[0].stem))
            way = noise - latent
            other = torch.randn(way.shape, generator=torch.Generator().manual_seed(1))
            other -= (other * way).sum() / way.square().sum() * way
            return self.share * way + self.across * other if self.is_on else torch.zeros_like(way)

    model = Arriving()
    assert learned(model, model, clips[:1]) == pytest.approx(1)
    model.share, model.across = 0.5, 3.0
    assert learned(model, model, clips[:1]) == pytest.approx(0.5, rel=1e-4)


def test_four_files_at_most_are_measured_on_whatever_their_order(samples):
    model = Model()
    whole = drift(model, model, samples)
    assert len(model.seen) == 24 and whole == drift(model, model, samples[:4])
    assert drift(model, model, samples[::-1]) == whole
    without = replace(samples[0], prior_captions=())
    assert drift(model, model, [without, *samples[1:5]]) == drift(model, model, samples[1:5])
    assert drift(model, model, [without]) is None and drift(model, model, []) is None


def test_it_moves_no_random_number(samples):
    model = Model()
    torch.manual_seed(4)
    state = torch.random.get_rng_state()
    assert drift(model, model, samples) == drift(model, model, samples)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.is_grad_enabled()


def test_a_model_that_predicts_nothing_or_no_number_has_no_drift(samples):
    for factor in (0.0, math.nan):
        model = Model()
        velocity = model.velocity
        model.velocity = lambda *given, velocity=velocity, factor=factor: factor * velocity(*given)
        assert math.isnan(drift(model, model, samples))


def test_frames_that_the_model_is_given_are_left_out(tmp_path):
    """They are clean in what it sees, and what it predicts there does not count."""
    store, random = Store(tmp_path), torch.Generator().manual_seed(0)
    paths = {kind: store.path(kind, "clip") for kind in ("latents", "texts", "known")}
    latent = torch.randn(48, 3, 4, 4, generator=random)
    store.write(paths["latents"], latent)
    store.write(paths["texts"], torch.zeros(2, 8))
    store.write(paths["known"], torch.tensor([1.0, 0.0, 0.0]))
    caption = {"text": paths["texts"]}
    clip = CachedSample("clip", BUCKET, 1, (paths["latents"],), (caption,), windows=({"known": paths["known"]},),
                        prior_captions=(caption,))

    class OfFrames(Model):
        family = WAN22_5B

        def velocity(self, x_BCFHW, t_B, conditions):
            assert torch.equal(x_BCFHW[0, :, 0], latent[:, 0]) and not torch.equal(x_BCFHW[0, :, 1], latent[:, 1])
            velocity_BCFHW = torch.ones_like(x_BCFHW)
            velocity_BCFHW[:, :, 0] = 100.0 if self.is_on else 50.0
            return velocity_BCFHW * (1.5 if self.is_on else 1.0)

    model = OfFrames()
    assert drift(model, model, [clip]) == pytest.approx(0.5)
    noise = objective.sample_noise(latent[None], objective.generator(paths["latents"].stem))
    missing = (noise - latent - 1)[:, :, 1:].double()
    assert learned(model, model, [clip]) == pytest.approx((0.5 * missing.sum() / missing.square().sum()).item())


def test_each_expert_is_measured_in_its_window_and_the_average_is_what_counts(samples, monkeypatch):
    seen, model = [], Model()
    model.average = 0.125
    for name in ("_gone", "_moved"):
        monkeypatch.setattr(meters, name, lambda denoiser, _adapter, _of, level: seen.append(
            (level, denoiser.is_average)) or torch.ones(2))
    for window, least, most in (("whole", 0.0, 1.0), ("high expert", 0.9, 1.0), ("low expert", 0.0, 0.9)):
        Judge(model, model, model, samples[:1], ObjectiveConfig(window=window, min_t=least, max_t=most)).measure(1)
    levels = (*TOP_LEVELS, *DRIFT_LEVELS, 0.99, 1.0, 0.92, 0.95, 0.98, 0.81, 0.9, 0.18, 0.45, 0.72)
    assert seen == [(level, True) for level in levels]


def test_a_run_logs_it_shows_it_and_keeps_it_beside_its_best(tmp_path):
    """A run that is interrupted measures the same again."""
    dataset = with_priors(small_model.dataset(tmp_path / "cache", held_out=2))
    config = TrainConfig(epochs=2, learning_rate=1e-2, optimizer=OptimizerConfig(ema_decay=0.5),
                         validation=ValidationConfig(evaluate_epochs=0, evaluate_steps=2, every_minutes=0))
    told = {}
    for name, stops in (("whole", (99,)), ("twice", (5, 99))):
        for stop in stops:
            run = Run(small_model.SmallModel(), dataset, "run", config, tmp_path / name)
            runs.driven(run, stop_at=stop)
        lines = [json.loads(line) for line in (run.folder.path / "log.jsonl").read_text().splitlines()]
        told[name] = [line for line in lines if line["event"] == "Evaluated"]
        runs.assert_one_history(run.folder.path)
        best = history.summary(run.folder.path).best
        at_best = next(line for line in told[name] if line["step"] == best["step"])
        assert best["learned"] == at_best["learned"] and "drift" not in best
    assert told["whole"] == told["twice"]
    drifts = [line["drift"] for line in told["whole"]]
    assert drifts[0] == 0.0 and drifts[1:] == sorted(drifts[1:]) and 0 < drifts[1] < drifts[-1] < 1


def with_priors(dataset):
    """The same with the empty prompt as the prior caption of each file."""
    return replace(dataset, held_out=tuple(
        replace(each, prior_captions=each.captions) for each in dataset.held_out))
