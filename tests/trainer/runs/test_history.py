"""Runs read from their folders: what the list says, and curves that equal a plain reading of the whole log."""

import json
import math
import random
from dataclasses import asdict

import pytest
import torch

from wantune.tests.support.runs import begun
from wantune.trainer.base.errors import UserError, content_hash
from wantune.trainer.runs import history
from wantune.trainer.runs.events import Evaluated, Finished, Previewed, Started, StepDone
from wantune.trainer.runs.folder import RunFolder, delete_run
from wantune.trainer.runs.reading import Reading

KEY = content_hash("a run")


@pytest.fixture
def folder(tmp_path):
    return begun(tmp_path, "cat", KEY, {"lora": {"rank": 8}, "learning_rate": 2e-4})


def step_done(step: int, loss: float, total: int = 900) -> StepDone:
    return StepDone(step=step, total_steps=total, epoch=1, loss=loss, learning_rate=1e-4 * step, grad_norm=1.0,
                    timesteps=(0.5,), losses=(loss,), is_skipped=False, seconds=0.1, samples_per_second=10.0)


def save(folder: RunFolder, step: int) -> None:
    folder.save(step, {"a": torch.zeros(4)}, {"step": step})


def train(folder: RunFolder, steps: range, seed: int = 0) -> list[float]:
    """Log steps with random losses, one in twenty not finite."""
    source = random.Random(seed)
    losses = [math.nan if source.random() < 0.05 else source.lognormvariate(-2, 0.5) for _ in steps]
    for step, loss in zip(steps, losses, strict=True):
        folder.log(step_done(step, loss))
    return losses


def smoothed(losses: list[float]) -> list[float]:
    """The exponential moving average over all finite losses so far, written out as a weighted mean."""
    result, finite = [], []
    for loss in losses:
        finite += [loss] if math.isfinite(loss) else []
        weights = [history.EMA_DECAY ** (len(finite) - 1 - index) for index in range(len(finite))]
        total = sum(weight * value for weight, value in zip(weights, finite, strict=True))
        result.append(total / sum(weights) if finite else math.nan)
    return result


def same(found: list, expected: list) -> bool:
    return [value is None for value in found] == [not math.isfinite(value) for value in expected] and all(
        math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, expected, strict=True) if a is not None)


def test_a_curve_of_as_many_points_as_steps_is_the_log(folder):
    losses = train(folder, range(1, 301))
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    curve = log.curve(2000)
    assert curve["step"] == list(range(1, 301))
    assert same(curve["low"], losses) and same(curve["high"], losses)
    assert same(curve["smooth"], smoothed(losses))
    assert curve["learning_rate"] == [1e-4 * step for step in range(1, 301)]
    assert math.isclose(log.ema / log.weight, smoothed(losses)[-1], rel_tol=1e-9)


def test_few_points_lose_no_extreme_and_no_step(folder):
    losses = train(folder, range(1, 1001))
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    curve = log.curve(37)
    assert len(curve["step"]) == 37 and curve["step"][-1] == 1000
    begin = 0
    for end, low, high, smooth in zip(curve["step"], curve["low"], curve["high"], curve["smooth"], strict=True):
        part = [loss for loss in losses[begin:end] if math.isfinite(loss)]
        assert (low, high) == (min(part), max(part)) and 26 <= end - begin <= 28
        assert math.isclose(smooth, smoothed(losses[:end])[-1], rel_tol=1e-9)
        begin = end


@pytest.mark.parametrize("first, last, expected", [
    (100, 200, range(100, 201)), (0, 50, range(1, 51)), (290, 0, range(290, 301)), (290, 9999, range(290, 301)),
    (301, 400, []), (200, 100, []),
])
def test_a_part_of_the_steps(folder, first, last, expected):
    train(folder, range(1, 301))
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    assert log.curve(500, first, last)["step"] == list(expected)


def test_reading_on_is_reading_all(folder):
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    assert log.curve(10)["step"] == [], "there is no log yet"
    done = 0
    for count in (1, 30, 0, 100, 7):
        train(folder, range(done + 1, done + count + 1), seed=count)
        done += count
        folder.log(Evaluated(done, 0.25, ((0.5, 0.25),), 0.5, True))
        with (folder.path / "log.jsonl").open("ab") as file:  # half of a line that is being written
            file.write(b'{"event": "Prev')
            file.flush()
            log.refresh()
            file.truncate(file.tell() - 15)
        whole = history.RunLog(folder.path / "log.jsonl")
        whole.refresh()
        assert log.curve(1000) == whole.curve(1000) and log.evaluated == whole.evaluated
    assert len(log.steps) == 138 and len(log.evaluated) == 5


def test_a_run_that_is_begun_anew_is_read_anew_also_when_its_log_is_longer_by_then(folder):
    train(folder, range(1, 21))
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    folder.rewind(0)
    losses = train(folder, range(1, 41), seed=5)
    log.refresh()
    assert same(log.curve(100)["low"], losses)
    folder.rewind(0)
    log.refresh()
    assert log.curve(100)["step"] == []


def test_lines_that_a_power_cut_left_are_passed_over(folder):
    losses = train(folder, range(1, 4))
    with (folder.path / "log.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n{\n[]\n{\"event\": \"StepDone\"}\n7\n")
    losses += train(folder, range(4, 6), seed=3)
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    assert same(log.curve(100)["low"], losses)
    assert history.summary(folder.path).step == 5


def test_the_list_says_how_far_a_run_came_and_where_it_goes_on(folder):
    folder.describe({"base": "Wan2.1", "started": 12.0, "user": "anna"}, {"workflow": {"id": "w"}, "prompt": None})
    folder.log(Started(0, 900, 40, 10, 1000))
    folder.log(Evaluated(0, 0.7, (), 0.7, False))
    train(folder, range(1, 501))
    folder.log(Evaluated(500, 0.5, (), 0.7, True))
    for step in (250, 500):
        save(folder, step)
    folder.mark_best(500, 0.5)
    (folder.path / "samples").mkdir()
    for name in ("base_0", "step_000100_0", "step_000500_0"):
        (folder.path / "samples" / f"{name}.jpg").write_bytes(b"x")
    folder.log(Previewed(500, "step_000500", ("samples/step_000500_0.mp4",), (4.5,), (5.0,), (math.nan,), (0.5,)))
    found = history.summary(folder.path)
    assert found.preview == {"motion": 4.5, "base_motion": 5.0, "likeness": None, "base_likeness": 0.5}
    assert (found.run, found.name, found.base, found.started) == (folder.path.name, "cat", "Wan2.1", 12.0)
    assert (found.step, found.total_steps, found.steps_per_epoch) == (500, 900, 40)
    assert (found.state, found.continues_from) == ("interrupted", 500)
    assert found.best == {"step": 500, "loss": 0.5} and found.base_loss == 0.7
    assert found.checkpoints == [{"step": 250, "best": False}, {"step": 500, "best": True}]
    assert found.thumbnail == "samples/step_000500_0.jpg" and found.has_workflow
    assert (found.rank, found.learning_rate) == (8, 2e-4)
    assert found.bytes == sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    json.dumps(asdict(found), allow_nan=False)


def test_what_was_measured_of_a_preview_and_a_log_from_before_it_was(folder):
    """Of two videos the last one is the thumbnail; a damaged value is none."""
    files = ["samples/step_000002_0.mp4", "samples/step_000002_1.mp4"]
    lines = [{"event": "Previewed", "step": 1, "name": "step_000001", "files": ["samples/step_000001_0.mp4"]},
             {"event": "Previewed", "step": 2, "name": "step_000002", "files": files, "motion": [1, "x"],
              "base_motion": 3, "likeness": [0.5, 0.7]}]
    (folder.path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    log = history.RunLog(folder.path / "log.jsonl")
    log.refresh()
    old, new = log.previewed
    assert (old["motion"], old["likeness"]) == ([], [])
    assert new == {"step": 2, "name": "step_000002", "files": files, "motion": [1, None], "base_motion": [],
                   "likeness": [0.5, 0.7], "base_likeness": []}
    (folder.path / "samples").mkdir()
    for name, expected in (("step_000001_0", dict.fromkeys(("motion", "base_motion", "likeness", "base_likeness"))),
                           ("step_000002_1", {"motion": None, "base_motion": None, "likeness": 0.7,
                                              "base_likeness": None}), ("step_000009_0", None)):
        (folder.path / "samples" / f"{name}.jpg").write_bytes(b"x")
        assert history.summary(folder.path).preview == expected


@pytest.mark.parametrize("reason, goes_on", [("done", None), ("early stop", None), ("stopped", 20)])
def test_how_a_run_ended(folder, reason, goes_on):
    folder.log(Started(0, 40, 10, 1, 1))
    train(folder, range(1, 21))
    save(folder, 20)
    folder.log(Finished(20, 1.0, reason, 0))
    found = history.summary(folder.path)
    assert (found.state, found.continues_from) == (reason, goes_on)
    folder.log(Started(20, 80, 10, 1, 1))  # with more epochs, and killed
    found = history.summary(folder.path)
    assert (found.state, found.continues_from, found.total_steps) == ("interrupted", 20, 80)


def test_a_run_without_checkpoints_goes_on_from_its_beginning(folder):
    folder.log(Started(0, 40, 10, 1, 1))
    assert history.summary(folder.path).continues_from == 0


def test_a_long_log_is_not_read_as_a_whole(folder):
    folder.log(Started(0, 5000, 10, 1, 1))
    train(folder, range(1, 3001))
    size = (folder.path / "log.jsonl").stat().st_size
    assert size > 4 * history.EDGE
    found = history._edges(folder.path / "log.jsonl", Reading(folder.path))
    assert [(line["event"], line["step"]) for line in found] == [("Started", 0), ("StepDone", 3000)]


def test_what_did_not_change_is_not_read_again_and_what_changed_is(folder, monkeypatch):
    folder.log(Started(0, 40, 10, 1, 1))
    first = history.summary(folder.path)
    with monkeypatch.context() as patched:
        patched.setattr(history, "_edges", None)
        assert history.summary(folder.path) == first
    changes = [
        (lambda: train(folder, range(1, 4)), {"step": 3}),
        (lambda: save(folder, 3), {"checkpoints": [{"step": 3, "best": False}]}),
        (lambda: folder.mark_best(3, 0.25), {"best": {"step": 3, "loss": 0.25}}),
        (lambda: folder.mark_best(3, 0.75), {"best": {"step": 3, "loss": 0.75}}),
        (lambda: folder.describe({"base": "Wan2.1"}, {"prompt": {"1": {}}}), {"base": "Wan2.1", "has_workflow": True}),
        (lambda: folder.rewind(0), {"step": 0}),
    ]
    for change, expected in changes:
        change()
        found = asdict(history.summary(folder.path))
        assert {name: found[name] for name in expected} == expected


def test_only_a_runs_folder_is_a_run(tmp_path, folder):
    other = tmp_path / "compare"
    other.mkdir()
    assert history.is_run(folder.path) and not history.is_run(other) and not history.is_run(tmp_path / "nothing")
    (other / "config.json").write_text('["key"]')
    assert not history.is_run(other)


def test_a_deleted_run_is_gone_and_what_its_links_lead_to_is_not(tmp_path, folder):
    save(folder, 3)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.png").write_bytes(b"mine")
    (folder.path / "link").symlink_to(outside)
    delete_run(folder.path)
    assert not folder.path.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["outside"]
    assert (outside / "photo.png").read_bytes() == b"mine"
    with pytest.raises(UserError, match="There is no run"):
        delete_run(folder.path)


def test_attempts_are_told_apart_by_their_number_and_length(tmp_path):
    names = [begun(tmp_path, "cat", KEY, {}, attempt=number, total_steps=9).path for number in (1, 2)]
    save(begun(tmp_path, "cat", KEY, {}, attempt=1), 8)
    names.append(begun(tmp_path, "cat", KEY, {}, attempt=1, total_steps=5).path)
    found = [history.summary(path) for path in names]
    assert [(each.name, each.attempt) for each in found] == [("cat", 1), ("cat (2)", 2), ("cat, 5 steps", 1)]
    assert {each.key for each in found} == {KEY}


def test_what_the_user_should_know_of_how_it_is_trained_is_told(folder):
    assert history.summary(folder.path).notes == ()
    for found, told in ((("Trained without a.", "b."), ("Trained without a.", "b.")), ((7, "b."), ("b.",)), (7, ())):
        folder.describe({"notes": found}, {})
        assert history.summary(folder.path).notes == told
