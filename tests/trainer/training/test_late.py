"""On a card a step is read while the next one is computed: the history is that of a CPU, where each is read at once."""

import json
import math

import pytest
import torch
from PIL import Image

from wantune.tests.support import small_model
from wantune.tests.support.runs import assert_one_history, driven
from wantune.tests.support.small_model import SmallModel
from wantune.trainer.base.errors import UserError
from wantune.trainer.runs.events import Previewed, StepDone
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from wantune.trainer.training import loop, results
from wantune.trainer.training.run import Run

TIMES = ("seconds", "samples_per_second")
NOTHING_DUE = ValidationConfig(every_minutes=0, evaluate_epochs=0)


@pytest.fixture
def dataset(tmp_path):
    return small_model.dataset(tmp_path / "cache", held_out=2)


@pytest.fixture
def late(monkeypatch):
    """As on a CUDA device; the test calls it to begin with that."""
    return lambda: monkeypatch.setattr(loop, "num_late", lambda device: 1)


def config(validation: ValidationConfig = NOTHING_DUE, **settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "learning_rate": 1e-2, "lora": LoraConfig(rank=2), "validation": validation,
                          **settings})


def history(run: Run) -> list[dict]:
    lines = (run.folder.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def weight(model: SmallModel) -> float:
    return sum(value.double().abs().sum().item() for value in model.adapter.state_dict().values())


class Pictures:
    """Previews that note the weights they are made of."""

    tokens, decoding = 4, 0

    def __init__(self, run: Run, model: SmallModel, every_steps: int) -> None:
        self.run, self.model, self.every_steps, self.weights = run, model, every_steps, []

    def is_due(self, step, total_steps, steps_per_epoch):
        return step % self.every_steps == 0

    def make(self, step, name, lora):
        self.weights.append((step, weight(self.model)))
        path = self.run.folder.path / "samples" / f"{name}_0.mp4"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path.with_suffix(".jpg"))
        return (Previewed(step, name, (f"samples/{path.name}",)),)


def test_a_step_is_read_once_and_after_the_next_one_was_enqueued(dataset, tmp_path, monkeypatch, late):
    order = []

    class Noted(results.Numbers):
        def __init__(self, values) -> None:
            super().__init__(values)
            order.append(("enqueued", sum(what == "enqueued" for what, _ in order) + 1))
            self.step = order[-1][1]

        def read(self):
            if self._read is None:
                order.append(("read", self.step))
            return super().read()

    monkeypatch.setattr(loop, "Numbers", Noted)
    late()
    driven(Run(SmallModel(), dataset, "late", config(max_steps=5), tmp_path / "runs"))
    expected = [("enqueued", 1)]
    for step in range(1, 5):
        expected += [("enqueued", step + 1), ("read", step)]
    assert order == [*expected, ("read", 5)]


SETTINGS = {"adamw": {}, "accumulation": {"optimizer": OptimizerConfig(accumulation=2, warmup_steps=3)},
            "average": {"optimizer": OptimizerConfig(ema_decay=0.9)},
            "lion": {"optimizer": OptimizerConfig(name="lion")},
            "preserving": {"objective": ObjectiveConfig(preserve=0.5, preserve_every=2)}}


@pytest.mark.parametrize("name", SETTINGS)
def test_late_and_at_once_tell_and_learn_the_same(dataset, tmp_path, late, name):
    """Checkpoints, evaluations and previews see the weights of their own step, and stand in the log behind it."""
    validation = ValidationConfig(every_minutes=0, every_steps=3, evaluate_epochs=0, evaluate_steps=4, keep_last=99)
    settings = config(validation, batch_size=2, **SETTINGS[name])
    found = []
    for place in ("at once", "late"):
        model = SmallModel(not_finite=(2, 7))
        run = Run(model, dataset, "run", settings, tmp_path / place)
        pictures = Pictures(run, model, 5)
        kinds = [type(event) for event in driven(run, pictures)]
        assert_one_history(run.folder.path)
        kept = {path.name: path.read_bytes() for path in run.folder.path.glob("step_*/*.safetensors")}
        found.append((history(run), kinds, pictures.weights, run.folder.steps(), kept, run.losses))
        late()
    assert found[0] == found[1]
    log, _, weights, steps, *_ = found[0]
    assert [line["step"] for line in log if line.get("is_skipped")] and len(steps) >= 2
    assert len({weight for _, weight in weights}) == len(weights) >= 2


def test_a_step_that_is_not_finite_changes_no_weight(dataset, tmp_path, late):
    late()
    model = SmallModel(not_finite=(3,))
    run = Run(model, dataset, "run", config(max_steps=6), tmp_path)
    weights = [weight(model) for event in run.events() if isinstance(event, StepDone)]
    # the event of step n comes when step n + 1 was done, and that of the last one at once
    assert weights[1] == weights[0] and len(set(weights[1:5])) == 4 and weights[5] == weights[4]
    assert [line["step"] for line in history(run) if line.get("is_skipped")] == [3]


def test_steps_that_are_never_finite_end_the_run_one_step_later_at_most(dataset, tmp_path, late):
    late()
    model = SmallModel(not_finite=range(4, 99))
    run = Run(model, dataset, "run", config(epochs=9), tmp_path)
    with pytest.raises(UserError, match=r"not finite for 10 steps in a row, the last at step 13 \(\d.png, loss nan"):
        driven(run)
    assert model.trained == 14
    lines = [line for line in history(run) if line["event"] == "StepDone"]
    assert [line["step"] for line in lines] == list(range(1, 15)) and assert_one_history(run.folder.path)
    before = SmallModel()
    driven(Run(before, dataset, "run", config(max_steps=3), tmp_path / "before"))
    assert same(model.adapter.state_dict(), before.adapter.state_dict()), "as it was before them"
    assert driven(Run(SmallModel(), dataset, "run", config(epochs=9), tmp_path))[0].step == 14


def test_stop_ends_one_step_later_at_most_and_nothing_is_lost(dataset, tmp_path, late):
    whole = Run(SmallModel(), dataset, "run", config(), tmp_path / "whole")
    driven(whole)
    late()
    run = Run(SmallModel(), dataset, "run", config(), tmp_path / "parts")
    events = driven(run, stop_at=7)
    assert run.steps == 8 and [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 9))
    assert len(assert_one_history(run.folder.path)) == 8
    run = Run(SmallModel(), dataset, "run", config(), tmp_path / "parts")
    driven(run)
    assert same(run.lora, whole.lora) and run.losses == whole.losses and assert_one_history(run.folder.path)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, torch.OutOfMemoryError, "closed"])
def test_what_breaks_off_loses_no_step_that_was_done(dataset, tmp_path, late, monkeypatch, kind):
    whole = Run(SmallModel(), dataset, "run", config(), tmp_path / "whole")
    driven(whole)
    late()
    model = SmallModel()
    run = Run(model, dataset, "run", config(), tmp_path / "parts")
    if kind == "closed":
        events = run.events()
        while not (isinstance(event := next(events), StepDone) and event.step == 6):
            pass
        events.close()
    else:
        predicted = model.velocity

        def velocity(*args):
            if model.trained == 7:
                raise kind("in the middle of a step")
            return predicted(*args)

        monkeypatch.setattr(model, "velocity", velocity)
        with pytest.raises(UserError if kind is torch.OutOfMemoryError else kind):
            driven(run)
    assert run.folder.newest()[0].step == 7 and len(assert_one_history(run.folder.path)) == 7
    run = Run(SmallModel(), dataset, "run", config(), tmp_path / "parts")
    assert driven(run)[0].step == 7 and same(run.lora, whole.lora) and run.losses == whole.losses


def test_a_step_lasts_from_the_numbers_of_the_one_before_to_its_own(dataset, tmp_path, late, monkeypatch):
    """Not as long as it takes to enqueue it."""
    late()
    clock = iter(range(10**6))
    monkeypatch.setattr(results.time, "perf_counter", lambda: float(next(clock)))
    run = Run(SmallModel(), dataset, "run", config(), tmp_path)
    steps = [event for event in driven(run) if isinstance(event, StepDone)]
    assert all(event.samples_per_second == 1 / event.seconds for event in steps)
    assert {event.seconds for event in steps[1:-1]} == {steps[1].seconds} and math.isfinite(steps[1].seconds)
