"""A run's folder: found by its key whatever its name, with a log that a reader can follow line by line."""

import json
import math
import shutil

import pytest
import torch

from wantune.tests.support.runs import begun
from wantune.trainer.base.errors import UserError, content_hash
from wantune.trainer.runs.events import Evaluated, Finished, Saved, Started, StepDone
from wantune.trainer.runs.folder import RunFolder, check_name, losses

KEY = content_hash("a run")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def step_done(step: int, loss: float = 0.5, **changes) -> StepDone:
    settings = {"step": step, "total_steps": 9, "epoch": 1, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.5,
                "timesteps": (0.25, 0.5), "losses": (loss, 0.5), "is_skipped": False, "seconds": 0.1,
                "samples_per_second": 20.0}
    return StepDone(**settings | changes)


def save(folder: RunFolder, step: int) -> None:
    folder.save(step, {"a": torch.full((2,), float(step))}, {"step": step})


@pytest.mark.parametrize("name", ["my_lora", "My LoRA 2.1", "zwx-\u00e4\u00f6", "\u732b", "a", ".hidden", "a.b", "-",
                                  "1", "x" * 60])
def test_a_name_that_every_system_takes_is_kept(name, root):
    assert check_name(name) == check_name(f"  {name}\n") == name
    folder = begun(root, f" {name} ", KEY, {})
    assert folder.path == root / f"{name}-{KEY[:8]}" and folder.path.is_dir()


@pytest.mark.parametrize("name", ["", "   ", ".", "..", "...", " .. "])
def test_a_name_of_nothing_or_points_is_refused(name, root):
    with pytest.raises(UserError, match="run_name is .*give the run a name such as my_lora"):
        check_name(name)
    with pytest.raises(UserError):
        begun(root, name, KEY, {})
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.parametrize("character", [*'\\/:*?"<>|', "\0", "\n", "\t", "\x1f"])
def test_a_name_with_a_character_that_some_system_refuses_is_refused(character):
    for name in (f"a{character}b", f"a{character}{character}b", f"..{character}a"):
        with pytest.raises(UserError, match="has the character .*; use letters, digits"):
            check_name(name)


@pytest.mark.parametrize("name", ["con", "NUL", "com1.v2", "aux.", "lpt9"])
def test_a_name_that_is_a_device_on_windows_is_refused(name):
    with pytest.raises(UserError, match="is the name of a device on Windows; choose another"):
        check_name(name)
    assert check_name(f"{name[:2]}-") and check_name("console") and check_name("com10")


def test_a_name_that_is_too_long_for_a_file_is_refused_in_a_sentence(root):
    with pytest.raises(UserError):
        begun(root, "x" * 300, KEY, {})


def test_no_name_leads_out_of_the_folder_of_runs(root):
    for name in ("../a", "a/../../b", "/etc/a", "C:\\a", "..\\a", "a/b"):
        with pytest.raises(UserError):
            begun(root, name, KEY, {})


def test_the_config_can_be_read_by_people_and_programs(root):
    config = {"learning_rate": 1e-4, "lora": {"rank": 32}, "objective": {"timesteps": "uniform"}}
    folder = begun(root, "lora", KEY, config)
    text = (folder.path / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "run_name": "lora", "key": KEY, "attempt": 1, "cut": 0, **config} and len(text.splitlines()) > 5


def test_the_same_run_under_another_name_is_the_same_folder(root):
    first = begun(root, "lora", KEY, {"epochs": 1})
    save(first, 3)
    second = begun(root, "another name", KEY, {"epochs": 2})
    assert second.path == first.path and second.newest()[0].step == 3
    assert [path.name for path in root.iterdir()] == [f"lora-{KEY[:8]}"]
    assert json.loads((first.path / "config.json").read_text())["epochs"] == 2


def test_another_key_under_the_same_name_is_another_folder(root):
    first, second = begun(root, "lora", KEY, {}), begun(root, "lora", content_hash("another"), {})
    save(first, 3)
    assert second.path != first.path and second.steps() == []
    assert second.path.name == f"lora-{content_hash('another')[:8]}"


def alike(key: str) -> str:
    """Another key with the same 8 digits."""
    return key[:8] + content_hash(key)[8:]


def test_another_key_with_the_same_digits_is_not_taken_for_this_run(root):
    save(begun(root, "lora", KEY, {}), 3)
    other = begun(root, "other", alike(KEY), {})
    assert other.steps() == [] and other.path.name == f"other-{KEY[:8]}"
    save(other, 5)
    assert begun(root, "whatever", KEY, {}).newest()[0].step == 3
    assert begun(root, "whatever", alike(KEY), {}).newest()[0].step == 5


def test_another_key_with_the_same_digits_and_the_same_name_is_another_folder(root):
    save(begun(root, "lora", KEY, {}), 3)
    assert begun(root, "lora", alike(KEY), {}).steps() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", None], ids=repr)
def test_a_folder_with_a_damaged_config_is_found_by_its_name(root, content):
    folder = begun(root, "lora", KEY, {})
    save(folder, 3)
    config = folder.path / "config.json"
    config.unlink() if content is None else config.write_bytes(content)
    assert begun(root, "lora", content_hash("another"), {}).steps() == [], "it is not in the way of others"
    again = begun(root, "lora", KEY, {})
    assert again.steps() == [3] and json.loads(config.read_text())["key"] == KEY


def test_what_a_killed_process_left_half_written_is_removed_and_never_taken(root):
    folder = begun(root, "lora", KEY, {})
    save(folder, 3)
    left = folder.path / "step_000009.0123.tmp"
    left.mkdir()
    for path in (folder.path / "step_000003").iterdir():
        (left / path.name).write_bytes(path.read_bytes())
    assert folder.newest()[0].step == 3 and folder.steps() == [3]
    assert begun(root, "lora", KEY, {}).newest()[0].step == 3 and not left.exists()


def test_half_a_config_of_a_killed_process_is_removed_too(root):
    folder = begun(root, "lora", KEY, {})
    left = [folder.path / f"{name}.0123456789abcdef.tmp" for name in ("config.json", "log.jsonl")]
    for path in left:
        path.write_text("{")
    begun(root, "lora", KEY, {})
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("in_the_way", ["folder", "log", "config"])
def test_a_folder_that_cannot_be_written_to_is_a_sentence(root, in_the_way):
    path = begun(root, "lora", KEY, {}).path
    blocked = {"folder": path, "log": path / "log.jsonl", "config": path / "config.json"}[in_the_way]
    if in_the_way == "folder":
        shutil.rmtree(blocked)
        blocked.write_text("a file")
    else:
        blocked.unlink(missing_ok=True)
        blocked.mkdir()
    with pytest.raises(UserError):
        begun(root, "lora", KEY, {}).log(step_done(1))


EVENTS = [
    Started(0, 9, 3, 20, 1000, ("The checkpoint step_000002 cannot be used (x); it is passed over.",)),
    step_done(1), step_done(2, math.nan, grad_norm=math.inf, losses=(math.nan, -math.inf), is_skipped=True),
    Evaluated(2, 0.25, ((0.1, 0.5), (0.9, math.nan)), math.nan, True), Saved(2, 0.5), Finished(2, 1.0, "stopped", 1)]


def test_every_event_is_a_line_of_json_that_is_there_at_once(root):
    folder = begun(root, "lora", KEY, {})
    log = folder.path / "log.jsonl"
    for number, event in enumerate(EVENTS, 1):
        folder.log(event)
        text = log.read_text(encoding="utf-8")
        assert text.endswith("\n") and len(text.splitlines()) == number
    assert folder.logged() == [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["event"] for line in folder.logged()] == [type(event).__name__ for event in EVENTS]
    assert log.read_text(encoding="utf-8") == text, "reading changes nothing"


def test_what_is_not_finite_becomes_null_at_any_depth(root):
    folder = begun(root, "lora", KEY, {})
    for event in EVENTS:
        folder.log(event)
    step, measured = folder.logged()[2:4]
    assert (step["loss"], step["grad_norm"], step["losses"]) == (None, None, [None, None])
    assert (measured["levels"], measured["base_loss"]) == ([[0.1, 0.5], [0.9, None]], None)
    assert step["timesteps"] == [0.25, 0.5] and step["is_skipped"] is True


def test_half_a_line_is_cut_off_wherever_it_ends_and_the_log_goes_on(root):
    folder = begun(root, "lora", KEY, {})
    for event in EVENTS[:3]:
        folder.log(event)
    log = folder.path / "log.jsonl"
    whole = log.read_bytes()
    first = len(whole.splitlines(keepends=True)[0])
    for length in (0, 1, first - 1, first, first + 1, len(whole) - 2, len(whole) - 1, len(whole)):
        log.write_bytes(whole[:length])
        again = begun(root, "lora", KEY, {})
        count = whole[:length].count(b"\n")
        assert len(again.logged()) == count
        again.rewind(9)
        again.log(EVENTS[4])
        assert [line["event"] for line in again.logged()] == ["Started", "StepDone", "StepDone"][:count] + ["Saved"]
        assert not list(again.path.glob("*.tmp"))


@pytest.mark.parametrize("line", [b"", b"\0\0\0\0", b'{"event": "StepD', b"\xff\xfe", b"null", b"{}"], ids=repr)
def test_a_damaged_line_does_not_end_the_run(root, line):
    folder = begun(root, "lora", KEY, {})
    folder.log(step_done(1, 0.5))
    with (folder.path / "log.jsonl").open("ab") as file:
        file.write(line + b"\n")
    folder.log(step_done(2, 0.25))
    try:
        assert losses(folder.logged(), 9) == [0.5, 0.25]
        assert [line["step"] for line in folder.logged()] == [1, 2]
    except (KeyError, TypeError) as error:
        raise ValueError from error


def test_the_losses_are_the_finite_ones_of_the_first_steps(root):
    folder = begun(root, "lora", KEY, {})
    assert folder.logged() == [] and losses(folder.logged(), 9) == []
    for step, loss in enumerate((0.5, math.nan, 0.25, math.inf, 0.125), 1):
        folder.log(step_done(step, loss))
        folder.log(Evaluated(step, 9.0, (), 9.0, False))
    assert [losses(folder.logged(), most) for most in (0, 1, 2, 3, 4, 9)] == [
        [], [0.5], [0.5], [0.5, 0.25], [0.5, 0.25], [0.5, 0.25, 0.125]]


def test_a_loss_is_read_as_exactly_what_it_was(root):
    folder = begun(root, "lora", KEY, {})
    expected = torch.rand(50, generator=torch.Generator().manual_seed(0)).double().mul(1e-3).tolist()
    for step, loss in enumerate(expected, 1):
        folder.log(step_done(step, loss))
    assert losses(folder.logged(), 50) == expected
