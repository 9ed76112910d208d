"""A run whose files are damaged in any way is listed with the reason, and hides no other."""

import json
import shutil
from dataclasses import asdict

import pytest

from wantune.tests.support.runs import begun
from wantune.tests.trainer.runs.test_history import KEY, save, step_done
from wantune.trainer.runs import history
from wantune.trainer.runs.events import Evaluated, Started
from wantune.trainer.runs.folder import delete_run

FILES = ("config.json", "origin.json", "best.json", "log.jsonl", "step_000002/state.json")

BROKEN = {"empty": b"", "cut off": b'{"key": "', "no object": b"[1, 2]", "binary": bytes(range(256)),
          "deep": b"[" * 100_000, "long number": b'{"step": ' + b"9" * 5000 + b"}", "null": b"null\n"}

WRONG = [None, True, -1, "x", 1.5, float("nan"), 1e400, 10**30, [], {}, [[1]], {"a": None}, "x" * 10_000, "\ud800"]


@pytest.fixture
def run(tmp_path):
    """The folder of a run with two checkpoints."""
    folder = begun(tmp_path, "cat", KEY, {"lora": {"rank": 8}, "learning_rate": 2e-4})
    folder.log(Started(0, 9, 3, 40, 1000))
    folder.log(Evaluated(0, 0.5, (), 0.5, False))
    for step in (1, 2):
        folder.log(step_done(step, 0.5, 9))
        save(folder, step)
    folder.mark_best(1, 0.4)
    folder.describe({"started": 1.0, "base": "a model"}, {"workflow": {"id": "w"}, "prompt": None})
    return folder.path


def told(run) -> dict:
    """The summary and the curve as the page gets them: JSON without NaN, which browsers do not parse."""
    assert history.was_run(run)
    log = history.RunLog(run / "log.jsonl")
    log.refresh()
    answer = {**asdict(history.summary(run)), "curve": log.curve(600), "held_out": log.evaluated,
              "previews": log.previewed, "ema": log.ema}
    return json.loads(json.dumps(answer, allow_nan=False))


def test_a_whole_run_has_no_faults(run):
    assert told(run)["faults"] == [] and told(run)["state"] == "interrupted"


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_the_reason_and_the_run_can_be_deleted(run, name, content):
    (run / name).write_bytes(content)
    found = told(run)
    is_only_short = name == "log.jsonl" and b"\n" not in content  # as in a run that has just begun
    is_not_looked_at = name.startswith("step_") and content.startswith(b"{") and content.endswith(b"}")
    if not is_only_short and not is_not_looked_at:
        assert [fault.startswith(f"{name} is unreadable (") for fault in found["faults"]] == [True], found["faults"]
    assert (found["state"] == "unreadable") == (name == "config.json")
    delete_run(run)
    assert not run.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_file_s_place_is_named_as_well(run, name):
    (run / name).unlink()
    (run / name).mkdir()
    assert name.startswith("step_") or told(run)["faults"]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("name", ["config.json", "origin.json", "best.json", "log.jsonl"])
def test_no_value_of_another_type_ends_the_listing(run, name, value):
    path = run / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else [
        json.loads(path.read_text())]
    for number, line in enumerate(lines):
        for key in line:
            changed = [{**each, key: value} if index == number else each for index, each in enumerate(lines)]
            path.write_text("".join(json.dumps(each) + "\n" for each in changed))
            told(run)
            history.name_of(run)


def test_what_is_no_run_is_not_offered_for_deletion(tmp_path):
    for name, file in (("model", "config.json"), ("cache", "index.sqlite"), ("compare", "a.mp4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        assert not history.was_run(tmp_path / name)


def test_without_its_config_a_run_is_unreadable(run):
    (run / "config.json").unlink()
    found = told(run)
    assert (found["state"], found["name"], found["step"]) == ("unreadable", run.name, 2)
    shutil.rmtree(run)
