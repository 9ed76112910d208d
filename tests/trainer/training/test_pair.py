"""Two runs by turns: whose turn it is, for how long, and what Stop and mistakes leave behind."""

import itertools
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
import torch

from wantune.tests.support.small_model import NAME, SmallModel, dataset
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.choice import GIB
from wantune.trainer.model.family import ModelFamily
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.runs.checkpoints import checkpoints
from wantune.trainer.runs.events import Evaluated, Finished, Paused, StepDone
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from wantune.trainer.training import experts, pair, results
from wantune.trainer.training.run import Run

NOBODY = {"high": None, "low": None}


def config(expert: str = "whole", **changes) -> TrainConfig:
    objective = ObjectiveConfig(window=f"{expert} expert" if expert != "whole" else expert)
    return TrainConfig(**{
        "epochs": 12, "learning_rate": 1e-2, "lora": LoraConfig(rank=2), "objective": objective,
        "validation": ValidationConfig(every_minutes=0), **changes})


@pytest.fixture
def opened(tmp_path):
    """Opens both runs in a folder of the test; those before them are closed."""
    stack, data = ExitStack(), dataset(tmp_path / "data")

    def both(place: str = "here", models: dict | None = None, **changes) -> dict[str, Run]:
        stack.close()
        return {expert: stack.enter_context(Run(
            (models or {}).get(expert) or SmallModel(), data, f"a_{expert}", config(expert, **changes),
            tmp_path / place)) for expert in experts.EXPERTS}

    with stack:
        yield both


def drive(runs, takes_turns: bool = True, stop_after: int = 0, **options) -> str:
    """The letters of the experts, step by step."""
    left = {name: run for name, run in runs.items() if not run.is_finished}
    trained, steps = pair.Pair(left, takes_turns, **options), ""
    with closing(trained.events(NOBODY)) as events:
        for expert, event in events:
            assert not isinstance(event, Paused)
            steps += expert[0] if isinstance(event, StepDone) else ""
            trained.stop = bool(stop_after) and len(steps) >= stop_after
    return steps


def turns(steps: str) -> list[int]:
    return [len(list(group)) for _, group in itertools.groupby(steps)]


def same(first: Run, second: Run) -> bool:
    return first.losses == second.losses and first.lora.keys() == second.lora.keys() and all(
        torch.equal(first.lora[key], second.lora[key]) for key in first.lora)


class Clock:
    """Stands still but for steps and swaps of `Timed` models, of which one is on the device."""

    def __init__(self) -> None:
        self.now, self.swaps, self.on_device = 0.0, 0.0, None

    def __call__(self) -> float:
        return self.now


class Timed(SmallModel):
    """A model whose step and whose way to the device take so many seconds."""

    def __init__(self, clock: Clock, step: float, swap: float) -> None:
        super().__init__()
        self._clock, self._step, self._swap = clock, step, swap

    def attached(self, *arguments):
        self._clock.on_device = self
        return super().attached(*arguments)

    def velocity(self, *arguments):
        self._clock.now += self._step
        return super().velocity(*arguments)

    def reload(self):
        super().reload()
        if self._clock.on_device is not self:
            self._clock.on_device = self
            self._clock.now += self._swap
            self._clock.swaps += self._swap


@pytest.mark.parametrize(("step", "swap"), [(1.0, 6.0), (1.0, 1.2), (20.0, 30.0), (0.1, 0.4)])
def test_swaps_take_a_twentieth_of_the_time_at_most_and_turns_are_no_longer_than_that_asks(
        opened, monkeypatch, step, swap):
    clock = Clock()
    monkeypatch.setattr(results.time, "perf_counter", clock)
    models = {expert: Timed(clock, step, swap) for expert in experts.EXPERTS}
    steps = drive(opened(models=models, epochs=400, max_steps=900), clock=clock)
    lengths, least = turns(steps), swap * (1 / pair.SHARE_OF_SWAPS - 1) / step
    print(f"{len(lengths)} turns, swaps {clock.swaps / clock.now:.3f} of the time, {lengths[:8]}")
    assert clock.swaps <= pair.SHARE_OF_SWAPS * clock.now * 1.001
    usual = lengths[4:-2]  # the first ones make up for what was not known, the last one has no other
    assert len(usual) > 2
    assert all(max(pair.LEAST_STEPS, least - 2) <= length <= max(pair.LEAST_STEPS, least) + 2 for length in usual)


def test_where_a_swap_costs_nothing_turns_are_as_short_as_they_may_be(opened):
    steps = drive(opened(), clock=Clock())
    assert turns(steps) == [10] * 12 and steps[0] == "h"


def test_one_after_the_other_nothing_is_ever_swapped(opened):
    runs = opened()
    assert turns(drive(runs, takes_turns=False)) == [60, 60]
    assert not hasattr(runs["high"]._denoiser, "reloaded")


@pytest.mark.parametrize("optimizer", [OptimizerConfig(), OptimizerConfig(name="prodigy", ema_decay=0.9)])
def test_stop_ends_both_and_the_next_time_both_go_on_bit_for_bit(opened, optimizer):
    expected = opened("whole", optimizer=optimizer)
    drive(expected, takes_turns=False)
    for stop_after in (5, 17, 33, 50):  # in the first turn, in the second, and in later ones
        runs = opened("parts", optimizer=optimizer)
        drive(runs, stop_after=stop_after, clock=Clock())
        for run in runs.values():
            folder = checkpoints(run.folder.path) if run.steps else None
            assert not run.steps or folder.steps[-1] == run.steps, "each has a checkpoint of its last step"
            assert int(run.lora.metadata["wantune.step"]) == run.steps
    runs = opened("parts", optimizer=optimizer)
    drive(runs, clock=Clock())
    assert same(runs["high"], expected["high"]) and same(runs["low"], expected["low"])
    assert runs["high"].losses != runs["low"].losses


def test_stopped_in_the_first_turn_the_other_lora_has_no_effect_and_its_run_can_begin_later(opened):
    runs = opened()
    assert drive(runs, stop_after=3) == "hhh"
    low = runs["low"].lora
    assert runs["low"].steps == 0 and runs["low"].losses == []
    assert not any(value.any() for key, value in low.items() if "lora_B" in key)
    assert any(value.any() for key, value in low.items() if "lora_A" in key)
    assert drive(opened(), takes_turns=False) == "h" * 57 + "l" * 60


def test_stopped_before_its_turn_a_run_of_before_gives_its_last_checkpoint(opened):
    drive(opened(), stop_after=15, clock=Clock())
    runs = opened()
    drive(runs, stop_after=2, clock=Clock())
    assert (runs["high"].steps, runs["low"].steps) == (12, 5) and len(runs["low"].losses) == 5


def test_one_that_is_done_leaves_the_time_to_the_other(opened):
    runs = opened()
    with closing(runs["low"].events()) as events:
        list(events)
    again = opened()
    assert again["low"].is_finished
    assert drive(again, clock=Clock()) == "h" * 60


def test_a_mistake_in_one_saves_both(opened):
    models = {"low": SmallModel(not_finite=range(13, 99)), "high": SmallModel()}
    with pytest.raises(UserError, match="not finite for 10 steps in a row"):
        drive(opened(models=models), clock=Clock())
    runs = opened()
    steps = drive(runs, stop_after=1, clock=Clock())
    assert steps == "h" and runs["high"].steps > 10 and runs["low"].steps > 10


def test_cancel_saves_both(opened):
    runs = opened()
    trained = pair.Pair(runs, True, Clock())
    with pytest.raises(KeyboardInterrupt), closing(trained.events(NOBODY)) as events:
        for number, _ in enumerate(events):
            if number == 15:
                raise KeyboardInterrupt
    runs = opened()
    drive(runs, stop_after=1, clock=Clock())
    assert runs["high"].steps == 11 and 0 < runs["low"].steps < 10


def test_of_the_one_that_waits_the_lora_is_there_as_it_is(opened):
    """As previews of both need it."""
    settings = {"optimizer": OptimizerConfig(ema_decay=0.9)}
    expected = opened("parts", **settings)
    drive(expected, stop_after=15, clock=Clock())
    runs = opened(**settings)
    assert runs["high"].lora_so_far is None
    trained, found = pair.Pair(runs, True, Clock()), None
    with closing(trained.events(NOBODY)) as events:
        for expert, event in events:
            if (expert, event.step) == ("low", 5) and isinstance(event, StepDone):
                found = {name: run.lora_so_far for name, run in runs.items()}
                trained.stop = True
    for name, run in expected.items():
        assert found[name].metadata["wantune.step"] == run.lora.metadata["wantune.step"]
        assert all(torch.equal(found[name][key], run.lora[key]) for key in run.lora)
    assert int(opened(**settings)["low"].lora_so_far.metadata["wantune.step"]) == 5


def test_both_end_with_an_event_of_their_own(opened):
    trained, ends = pair.Pair(opened(), True, Clock()), []
    for expert, event in trained.events(NOBODY):
        ends += [(expert, event.reason, event.step)] if isinstance(event, Finished) else []
    assert ends == [("high", "done", 60), ("low", "done", 60)]


def test_what_the_other_one_keeps_on_the_device_counts(opened):
    runs = opened(lora=LoraConfig(rank=8), optimizer=OptimizerConfig(ema_decay=0.9))
    numbers = 2 * 8 * 16
    assert runs["high"].lasting_bytes == numbers * (8 + 8), "weights and their average, and two moments, in fp32"
    free = runs["high"].memory_plan().choice.free
    assert runs["low"].memory_plan(beside=runs["high"].lasting_bytes).choice.free == free - numbers * 16
    with pytest.raises(UserError, match="Training needs at least"):
        opened("other")["low"].memory_plan(beside=GIB)


WINDOWS = {"high": (0.875, 1.0), "low": (0.0, 0.875)}


@pytest.mark.parametrize("expert", WINDOWS)
def test_an_expert_learns_what_a_model_learns_in_its_window_by_numbers(opened, tmp_path, expert):
    low, high = WINDOWS[expert]
    run = opened()[expert]
    assert (run.config.objective.min_t, run.config.objective.max_t) == (low, high) and run.expert == expert
    seen = [t for event in run.events() if isinstance(event, StepDone) for t in event.timesteps]
    assert len(seen) == 60 and all(low <= t <= high for t in seen)
    assert run.lora.metadata["wantune.expert"] == expert
    assert run.lora.metadata["ss_base_model_version"] == "Wan Video 2.2 T2V-A14B"
    data = dataset(tmp_path / "data")
    by_numbers = config(objective=ObjectiveConfig(min_t=low, max_t=high))
    with Run(SmallModel(), data, "by_numbers", by_numbers, tmp_path / "here") as other:
        list(other.events())
    assert same(other, run) and "wantune.expert" not in other.lora.metadata


@pytest.mark.parametrize("expert", WINDOWS)
def test_an_expert_is_measured_on_the_noise_levels_it_is_used_for(tmp_path, expert):
    low, high = WINDOWS[expert]
    data = dataset(tmp_path / "data", held_out=2)
    with Run(SmallModel(), data, "a", config(expert), tmp_path / "runs") as run:
        measured = [event for event in run.events() if isinstance(event, Evaluated)]
    levels = [level for level, _ in measured[0].levels]
    assert len(measured) == 13 and levels == pytest.approx([low + (high - low) * k / 10 for k in range(1, 10)])
    assert all([level for level, _ in event.levels] == levels for event in measured)
    by_numbers = config(objective=ObjectiveConfig(min_t=low, max_t=high))
    with Run(SmallModel(), data, "a", by_numbers, tmp_path / "runs") as whole:
        assert whole.folder.path != run.folder.path, "of the whole model another loss is measured"


def family(name: str) -> ModelFamily:
    return replace(WAN21_T2V, name=name)


@pytest.mark.parametrize(("objective", "name", "window"), [
    ({"window": "high expert"}, "Wan2.1 T2V", (0.875, 1.0)),
    ({"window": "high expert"}, "Wan2.2 I2V", (0.9, 1.0)),
    ({"window": "low expert"}, "Wan2.2 I2V", (0.0, 0.9)),
    ({"window": "low expert", "boundary": 0.8}, "Wan2.2 I2V", (0.0, 0.8)),
    ({"window": "low expert", "min_t": 0.1, "max_t": 0.5}, "Wan2.1 T2V", (0.1, 0.5)),
    ({"window": "high expert", "min_t": 0.5, "max_t": 0.95}, "Wan2.1 T2V", (0.875, 0.95)),
    ({"boundary": 0.8}, "Wan2.1 T2V", (0.0, 1.0)),
])
def test_windows_in_numbers(objective, name, window):
    found = experts.in_numbers(ObjectiveConfig(**objective), family(name))
    assert (found.min_t, found.max_t) == window
    assert experts.in_numbers(found, family(name)) == found, "nothing is left to be found out"
    assert found.boundary or found == ObjectiveConfig()


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: ObjectiveConfig(boundary=1.0), "boundary is 1.0; choose more than 0 and less than 1, such as 0.875, or 0"),
    (lambda: ObjectiveConfig(boundary=-0.1), "boundary is -0.1; choose more than 0 and less than 1"),
    (lambda: ObjectiveConfig(window="medium expert"), "window is 'medium expert'; choose one of whole, high expert"),
    (lambda: experts.in_numbers(ObjectiveConfig(window="high expert", max_t=0.5), WAN21_T2V),
     "min_t and max_t are 0 and 0.5, which leaves nothing of the high expert's noise levels, 0.875 to 1; choose them"),
    (lambda: experts.of_expert(ObjectiveConfig(window="low expert"), "high"),
     "window is low expert in Timestep and Loss Settings, but with model_low each expert is trained in its own; set"),
    (lambda: experts.check_names({"high": "wan2.2_t2v_low_noise_14B.gguf", "low": "wan2.2_t2v_high_noise_14B.gguf"}),
     "By their names wan2.2_t2v_low_noise_14B.gguf is the low-noise expert .* swap model and model_low"),
])
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_models_of_other_kinds_are_no_pair():
    class Other(SmallModel):
        def linear_sizes(self):
            return {NAME: (32, 16)}

    wide, other = Other(), SmallModel()
    with pytest.raises(UserError, match="other shapes, such as blocks.0.self_attn.q, 32 x 16 and 16 x 16; connect"):
        experts.check_pair(wide, other)
    other.family = family("Wan2.2 I2V")
    with pytest.raises(UserError, match="model is Wan2.1 T2V, model_low is Wan2.2 I2V; connect the two experts of one"):
        experts.check_pair(SmallModel(), other)
    experts.check_pair(SmallModel(), SmallModel())


@pytest.mark.parametrize(("objective", "file", "sentence"), [
    ({"window": "high expert"}, "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
     "By its file's name the model is the low-noise expert, but it is trained as the high-noise one."),
    ({"window": "low expert"}, "Wan2_2-T2V-A14B-HIGH_fp8.safetensors", "but it is trained as the low-noise one."),
    ({"window": "high expert"}, "wan2.2_t2v_high_noise_14B.safetensors", ""), ({"window": "low expert"}, "", ""),
    ({"window": "low expert"}, "wan2.2_mine.safetensors", ""), ({}, "wan2.1_t2v_14B.safetensors", ""),
    ({}, "wan2.2_t2v_low_noise_14B.safetensors", "trained on all noise levels; set window to low expert in Timestep"),
    ({"max_t": 0.9}, "wan2.2_t2v_low_noise_14B.safetensors", ""),
])
def test_what_a_name_tells_of_an_expert_is_said_where_the_settings_do_not(objective, file, sentence):
    found = experts.note_of_name(ObjectiveConfig(**objective), file)
    assert sentence in found and bool(sentence) == bool(found)


def test_a_pair_whose_one_name_is_wrong_is_trained_with_a_note(tmp_path):
    experts.check_names({"high": "wan2.2_low_noise.safetensors", "low": "a.safetensors"})
    with Run(SmallModel(), dataset(tmp_path / "data"), "a", config("high"), tmp_path / "runs",
             model_file="wan2.2_low_noise_14B.safetensors") as run:
        assert any("but it is trained as the high-noise one" in note for note in run.notes)
