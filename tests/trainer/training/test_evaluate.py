"""The held-out loss: of model and files alone, whatever else is there. What is best."""

import itertools
import json
import math
from contextlib import contextmanager

import pytest
import torch

from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded.cache import CachedSample
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.runs.state import put_together, take_apart
from wantune.trainer.training import evaluate, meters, objective
from wantune.trainer.training.evaluate import LEVELS, TOLERANCE, Judge, held_out_loss

BUCKET = Bucket(1, 64, 96)


class Model:
    """Stands for denoiser, adapter and averages: velocity = a x + b t + the text's mean, the adapter adding to a."""

    device = torch.device("cpu")
    family = WAN21_T2V
    compute_dtype = torch.float32

    def __init__(self, a: float = 0.25) -> None:
        self.a, self.average, self.is_on, self.is_average, self.seen = a, None, True, False, []

    def prepared(self, conditions, size_FHW):
        return conditions

    def velocity(self, x_BCFHW, t_B, conditions):
        assert self.is_ready and not torch.is_grad_enabled()
        self.seen.append((round(t_B.item(), 6), len(x_BCFHW), self.is_on, self.is_average))
        a = (self.average if self.is_average else self.a) if self.is_on else 0.0
        return (0.5 + a) * x_BCFHW + t_B.view(-1, 1, 1, 1, 1) + conditions["text"].mean()

    @contextmanager
    def training(self):
        self.is_ready = True
        yield
        self.is_ready = False

    @contextmanager
    def switched_off(self):
        self.is_on = False
        yield
        self.is_on = True

    @contextmanager
    def in_place(self):
        self.is_average = self.average is not None
        yield
        self.is_average = False


@pytest.fixture
def clips(tmp_path):
    """Four held-out clips in a cache: a picture, one with a mask, one with several captions, and a clip."""
    store, random = Store(tmp_path / "cache"), torch.Generator().manual_seed(0)

    def write(kind, key, *shape):
        path = store.path(kind, key)
        if not path.exists():
            store.write(path, torch.randn(shape, generator=random).abs().clamp(max=1) if kind == "masks" else
                        torch.randn(shape, generator=random))
        return path

    def clip(number, frames=1, texts=1, mask=False):
        return CachedSample(
            name=f"{number}.png", bucket=BUCKET, repeats=number + 1,
            latent_paths=tuple(write("latents", f"{number}{window}", 16, frames, 8, 12) for window in range(2)),
            captions=tuple({"text": write("texts", f"{number}{text}", 3 + text, 8)} for text in range(texts)),
            mask_path=write("masks", f"{number}", 8, 12) if mask else None,
            empty_caption={"text": write("texts", "empty", 1, 8)}, caption_dropout=0.9)

    return [clip(0), clip(1, mask=True), clip(2, texts=3), clip(3, frames=3)]


def by_hand(clip: CachedSample, level: float, a: float) -> float:
    """The first window with the first caption, its own noise, and the mean of squares where the mask shows."""
    latent, text = read_tensor(clip.latent_paths[0]), read_tensor(clip.captions[0]["text"])
    noise = torch.randn((1, *latent.shape), generator=objective.generator(clip.latent_paths[0].stem))[0]
    x = (1 - level) * latent + level * noise
    error = ((0.5 + a) * x + level + text.mean() - (noise - latent)).double().square()
    weight = read_tensor(clip.mask_path).double() if clip.mask_path else torch.ones(8, 12).double()
    return ((error * weight).sum() / (weight.sum() * error.shape[0] * error.shape[1])).item()


def test_the_levels_are_the_tenths():
    assert LEVELS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_it_is_the_plain_loss_at_each_level_by_hand(clips):
    model = Model()
    losses = held_out_loss(model, clips)
    assert tuple(losses) == LEVELS
    for level, loss in losses.items():
        assert loss == pytest.approx(sum(by_hand(clip, level, model.a) for clip in clips) / 4, rel=1e-5)
    assert sorted(model.seen) == sorted((level, 1, True, False) for level in LEVELS for _ in clips)


def test_it_is_the_loss_that_training_has(clips):
    for clip in clips:
        batch = evaluate.read_batch([clip.visit(0)], WAN21_T2V.conditions)
        noise = objective.sample_noise(batch.latent_BCFHW, objective.generator(clip.latent_paths[0].stem))
        for level, loss in held_out_loss(model := Model(), [clip]).items():
            with model.training(), torch.no_grad():
                expected = objective.denoising_loss(
                    model, batch.latent_BCFHW, batch.conditions, torch.tensor([level]), noise, batch.mask_B11HW)
            assert loss == expected.item()


def test_what_a_mask_hides_is_not_measured(clips):
    masked = clips[1]
    before = held_out_loss(Model(), [masked])
    mask, latent = read_tensor(masked.mask_path), read_tensor(masked.latent_paths[0])
    mask[:, :6] = 0
    store = Store(masked.mask_path.parents[1])
    store.write(masked.mask_path, mask)
    half = held_out_loss(Model(), [masked])
    latent[..., :6] = 100
    store.write(masked.latent_paths[0], latent)
    assert held_out_loss(Model(), [masked]) == half != before
    store.write(masked.mask_path, torch.full((8, 12), 0.5))
    everything = held_out_loss(Model(), [masked])
    store.write(masked.mask_path, torch.ones(8, 12))
    assert held_out_loss(Model(), [masked]) == pytest.approx(everything)


def test_it_is_the_same_every_time_whatever_the_global_generators_say(clips):
    first = held_out_loss(Model(), clips)
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        assert held_out_loss(Model(), clips) == first
        assert torch.equal(torch.random.get_rng_state(), state)


def test_it_depends_neither_on_the_order_nor_on_what_else_is_held_out(clips):
    alone = [held_out_loss(Model(), [clip]) for clip in clips]
    for order in ([3, 1, 0, 2], [2, 0], [1], [0, 1, 2, 3]):
        losses = held_out_loss(Model(), [clips[i] for i in order])
        assert losses == {level: sum(alone[i][level] for i in order) / len(order) for level in LEVELS}
        assert losses == held_out_loss(Model(), [clips[i] for i in reversed(order)])


def test_each_file_has_noise_of_its_own_by_its_content(clips, tmp_path):
    """Not by its number, its name or its folder."""
    first, second = clips[0], clips[2]
    moved = Store(tmp_path / "elsewhere")
    path = moved.path("latents", first.latent_paths[0].stem)
    moved.write(path, read_tensor(first.latent_paths[0]))
    renamed = CachedSample("renamed", BUCKET, 1, (path,), first.captions)
    assert held_out_loss(Model(), [renamed]) == held_out_loss(Model(), [first])
    path = moved.path("latents", second.latent_paths[0].stem)
    moved.write(path, read_tensor(first.latent_paths[0]))
    other = CachedSample(first.name, BUCKET, 1, (path,), first.captions)
    losses = held_out_loss(Model(), [first])
    assert all(loss != losses[level] for level, loss in held_out_loss(Model(), [other]).items())


class Scripted:
    """A judge whose measurements are what the test says: the losses, the base's first, and what was learned.

    Args:
        learned: where it says nothing, by how much the loss is below the base's.
    """

    def __init__(self, monkeypatch, *losses: float, learned=None) -> None:
        self.model, left = Model(), iter(losses)
        given = None if learned is None else iter(learned)
        self.calls = []

        def measured(denoiser, clips, levels, _ranks):
            self.calls.append((self.model.is_on, self.model.is_average))
            self.loss = next(left)
            return dict.fromkeys(levels, self.loss)

        def metered(denoiser, adapter, clips, levels, _ranks):
            assert self.model.is_on and self.model.is_average == (self.model.average is not None)
            return self.judge.base_loss - self.loss if given is None else next(given)

        monkeypatch.setattr(evaluate, "held_out_loss", measured)
        monkeypatch.setattr(evaluate.meters, "learned", metered)
        monkeypatch.setattr(evaluate.meters, "drift", lambda *_: 0.1)
        self.judge = Judge(self.model, self.model, self.model, ["clip"])


def test_the_best_has_learned_the_most_so_far_and_is_never_the_start(monkeypatch):
    judge = Scripted(monkeypatch, 1.0, 0.2, 0.9, 0.5, 0.5, 0.7, 0.4, math.nan, 0.3).judge
    events = [judge.measure(step) for step in (0, 10, 20, 30, 40, 50, 60, 70)]
    assert [event.is_best for event in events] == [False, True, True, False, False, True, False, True]
    assert [event.step for event in events] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert events[1].loss == pytest.approx(0.9) and events[1].base_loss == pytest.approx(1.0)
    assert (events[1].learned, events[1].drift) == (pytest.approx(0.1), 0.1)
    assert (judge.best_step, judge.since_best) == (70, 0)
    assert (judge.best_loss, judge.best_learned) == pytest.approx((0.3, 0.7))


@pytest.mark.parametrize("learned, best", [
    ((0.2, 0.205, 0.21, 0.2106), (0, 3)),  # by more than a twentieth of itself, from the best on
    ((0.2, 0.3, 0.29, 0.31), (0, 1)),
    ((-0.3, -0.2, -0.1999, -0.25), (0, 1, 2)),  # where it gets worse, the least bad
    ((-0.1, 0.0001, 0.1), (0, 1, 2)),
])
def test_a_later_step_is_the_best_where_it_has_learned_more_by_a_twentieth(monkeypatch, learned, best):
    """Whatever the held-out loss says."""
    losses = torch.rand(len(learned) + 1, generator=torch.Generator().manual_seed(1)).tolist()
    judge = Scripted(monkeypatch, *losses, learned=learned).judge
    assert tuple(step for step in range(len(learned)) if judge.measure(step + 1).is_best) == best


def test_creeping_never_takes_the_best_further_than_a_twentieth_from_the_most(monkeypatch):
    random = torch.Generator().manual_seed(3)
    learned = (torch.rand(300, generator=random, dtype=torch.float64).cumsum(0) / 400).tolist()
    for order in (learned, learned[::-1]):
        judge = Scripted(monkeypatch, *[0.5] * 301, learned=order).judge
        for step, most in enumerate(itertools.accumulate(order, max), 1):
            judge.measure(step)
            assert judge.best_learned >= (1 - TOLERANCE) * most - 1e-9


def test_where_it_is_unknown_what_was_learned_the_best_is_of_the_lowest_loss(monkeypatch):
    losses = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    judge, best = Scripted(monkeypatch, 0.5, *losses, learned=[math.nan] * 50).judge, math.inf
    for step, loss in enumerate(losses, 1):
        assert judge.measure(step).is_best == (loss < best)
        best = min(best, loss)
        assert judge.best_loss == pytest.approx(best)


@pytest.mark.parametrize("further", [
    {}, {"best_drift": 0.1, "least_loss": 0.405},
    {"best_drift": 0.1, "least_loss": 0.3, "base_top_loss": 0.8, "best_learned": 0.1, "most_learned": 0.11}])
def test_a_checkpoint_from_before_goes_on_by_loss_until_a_step_beats_its_best(monkeypatch, further):
    scripted = Scripted(monkeypatch, 0.41, 0.4, 0.6, 0.3, learned=[0.5, 0.1, 0.2, 0.15])
    scripted.judge.load_state_dict({"base_loss": 0.8, "best_loss": 0.405, "best_step": 5, "since_best": 1, **further})
    events = [scripted.judge.measure(step) for step in (6, 7, 8, 9)]
    assert [event.is_best for event in events] == [False, True, True, False]
    assert events[0].learned == 0.5 and scripted.calls == [(True, False)] * 4


def test_the_measurements_since_the_best_are_counted(monkeypatch):
    judge = Scripted(monkeypatch, 1.0, 0.1, 0.9, 0.95, math.nan, 0.9, 0.8).judge
    counts = []
    for step in range(6):
        judge.measure(step)
        counts.append((judge.best_step, judge.since_best))
    assert counts == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (5, 0)]


def test_the_model_alone_is_measured_once_and_then_what_would_be_saved(monkeypatch):
    scripted = Scripted(monkeypatch, *[0.5] * 9)
    scripted.model.average = 1.0
    for step in range(4):
        scripted.judge.measure(step)
    assert scripted.calls == [(False, False)] + 4 * [(True, True)]
    assert scripted.model.is_on and not scripted.model.is_average


def test_a_measurement_has_every_level_and_their_mean_with_and_without_the_adapter(clips):
    model = Model(a=0.25)
    model.average = 0.125
    event = Judge(model, model, model, clips).measure(3)
    expected = [sum(by_hand(clip, level, 0.125) for clip in clips) / 4 for level in LEVELS]
    base = [sum(by_hand(clip, level, 0.0) for clip in clips) / 4 for level in LEVELS]
    assert [level for level, _ in event.levels] == list(LEVELS)
    assert [loss for _, loss in event.levels] == pytest.approx(expected, rel=1e-5)
    assert (event.loss, event.base_loss) == pytest.approx((sum(expected) / 9, sum(base) / 9), rel=1e-5)
    assert event.step == 3 and event.is_best
    assert event.learned == meters.learned(alone := Model(0.125), alone, clips)


def test_measuring_moves_no_random_number_and_no_parameter(clips):
    model = Model()
    torch.manual_seed(4)
    state, judge = torch.random.get_rng_state(), Judge(model, model, model, clips)
    first = judge.measure(1)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.is_grad_enabled() and model.a == 0.25
    second = judge.measure(1)
    assert second == first, "the best stays the best"


def test_what_it_knows_goes_through_a_checkpoint(monkeypatch):
    data, tensors = take_apart(Scripted(monkeypatch).judge.state_dict())
    fresh = Scripted(monkeypatch, 1.0, 0.5, 0.6)
    fresh.judge.load_state_dict(put_together(json.loads(json.dumps(data, allow_nan=False)), tensors))
    assert math.isnan(fresh.judge.base_loss) and fresh.judge.best_loss == math.inf
    fresh.judge.measure(5)
    fresh.judge.measure(6)
    data, _ = take_apart(fresh.judge.state_dict())
    resumed = Scripted(monkeypatch, 0.55, 0.45)
    resumed.judge.load_state_dict(put_together(json.loads(json.dumps(data, allow_nan=False)), {}))
    event = resumed.judge.measure(7)
    assert (event.base_loss, event.is_best) == (pytest.approx(1.0), False) and resumed.calls == [(True, False)]
    assert (resumed.judge.best_step, resumed.judge.since_best) == (5, 2)
    assert resumed.judge.measure(8).is_best and resumed.judge.best_step == 8
