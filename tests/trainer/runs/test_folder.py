"""Checkpoints: whole or not there, told from damaged ones, and bit for bit what was saved."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import SafetensorError

from wantune.tests.support.runs import begun
from wantune.trainer.base import files as disk
from wantune.trainer.base.errors import UserError
from wantune.trainer.runs import state as run_state
from wantune.trainer.runs.folder import RunFolder
from wantune.trainer.runs.state import ADAPTER, INDEX, STATE

KEY = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    return begun(tmp_path / "runs", "lora", KEY, {"seed": 7})


def adapter(step: int) -> dict[str, torch.Tensor]:
    return {f"blocks.{i}.lora_{kind}.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(step + i))
            for i in range(2) for kind in "AB"}


def state(step: int) -> dict:
    """Of the shapes that training hands out."""
    return {
        "step": step, "position": (1, step), "judge": {"best_loss": float("inf"), "base_loss": float("nan")},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((2, 3), step / 7)}},
                      "param_groups": [{"lr": 1e-4 * step, "betas": (0.9, 0.99), "params": [0, 1]}]},
        "averages": {}, "parameters": adapter(step)}


def save(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        folder.save(step, adapter(step), state(step))


def is_same(first, second) -> bool:
    """Values that are text in the same way, and tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(is_same, first, second))
    return repr(first) == repr(second)


def is_whole(found: run_state.Checkpoint | None, step: int) -> bool:
    return found is not None and found.step == step and is_same(found.adapter, adapter(step)) and is_same(
        found.state, state(step))


def files(folder: RunFolder) -> dict[str, bytes]:
    return {path.relative_to(folder.path).as_posix(): path.read_bytes()
            for path in folder.path.rglob("*") if path.is_file()}


def test_what_is_saved_is_loaded_bit_for_bit(folder):
    place = folder.save(12, adapter(12), state(12))
    assert place == folder.path / "step_000012"
    assert sorted(path.name for path in place.iterdir()) == sorted([ADAPTER, INDEX, STATE])
    assert is_whole(folder.load(12), 12)
    assert is_whole(begun(folder.path.parent, "lora", KEY, {}).newest()[0], 12)
    assert not is_whole(folder.load(12), 13)


def test_a_step_that_is_saved_again_is_replaced(folder):
    folder.save(3, adapter(1), state(1))
    save(folder, 3)
    assert is_whole(folder.load(3), 3) and folder.steps() == [3]


def test_what_is_loaded_can_be_written_over_while_it_is_in_use(folder):
    save(folder, 3)
    found = folder.load(3)
    folder.save(3, adapter(9), state(9))
    assert is_whole(found, 3)


def test_the_newest_is_that_of_the_largest_step_and_at_most_what_is_asked(folder):
    assert folder.newest() == (None, [])
    save(folder, 5, 20, 100, 1_000_000, 7)
    assert folder.steps() == [5, 7, 20, 100, 1_000_000]
    for most, step in ((None, 1_000_000), (1_000_000, 1_000_000), (999_999, 100), (99, 20), (19, 7), (5, 5)):
        found, faults = folder.newest(most)
        assert is_whole(found, step) and not faults
    assert folder.newest(4) == (None, []) and folder.newest(0) == (None, [])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))  # what a power cut may leave


def swap(path):
    shutil.copy(path.parent.with_name("step_000010") / path.name, path)


def mix(path):
    path.write_text('[{"step": 30}, "files"]')


@pytest.mark.parametrize("damage", [truncate, empty, grow, zero, shutil.move, mix], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [ADAPTER, STATE, INDEX])
def test_a_damaged_checkpoint_is_passed_over_and_named(folder, name, damage):
    save(folder, 10, 20, 30)
    path = folder.path / "step_000030" / name
    if damage is shutil.move:
        path.unlink()
    else:
        damage(path)
    found, (fault,) = folder.newest()
    assert is_whole(found, 20)
    assert fault.startswith("The checkpoint step_000030 cannot be used (") and fault.endswith("it is passed over.")
    if damage in (truncate, empty, grow, zero) and name != INDEX:
        assert f"{name} is damaged" in fault


@pytest.mark.parametrize("name", [ADAPTER, STATE])
def test_a_file_of_another_checkpoint_is_noticed(folder, name):
    save(folder, 10, 20)
    swap(folder.path / "step_000020" / name)
    assert is_whole(folder.newest()[0], 10)


def test_the_index_of_another_checkpoint_is_noticed(folder):
    """A folder that was copied under another name by hand."""
    save(folder, 10, 20)
    shutil.copytree(folder.path / "step_000010", folder.path / "step_000030")
    assert is_whole(folder.newest()[0], 20)


def flipped_everywhere(folder: RunFolder, name: str) -> list[int]:
    """Places of a file where a flipped bit gives another content than what was saved, or an error that is no fault."""
    save(folder, 10, 20)
    path, wrong = folder.path / "step_000020" / name, []
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        for bit in (1, 32) if name == INDEX else (16,):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1:])
            try:
                found, faults = folder.newest()
                is_right = is_whole(found, 10) and len(faults) == 1
            except Exception:
                is_right = False
            # a blank that became another blank is no harm
            if not (is_right or (name == INDEX and is_whole(found, 20))):
                wrong.append(place)
    path.write_bytes(whole)
    assert is_whole(folder.newest()[0], 20)
    return wrong


@pytest.mark.parametrize("name", [ADAPTER, STATE, INDEX])
def test_every_flipped_bit_is_noticed(folder, name):
    assert flipped_everywhere(folder, name) == []


def test_several_damaged_ones_are_all_named_newest_first(folder):
    save(folder, 1, 2, 3, 4)
    for step, name in ((4, ADAPTER), (3, STATE), (2, INDEX)):
        truncate(folder.path / f"step_{step:06d}" / name)
    found, faults = folder.newest()
    assert is_whole(found, 1)
    assert [fault.split()[2] for fault in faults] == ["step_000004", "step_000003", "step_000002"]
    assert [fault.split()[2] for fault in folder.newest(3)[1]] == ["step_000003", "step_000002"]
    truncate(folder.path / "step_000001" / ADAPTER)
    assert folder.newest()[0] is None and len(folder.newest()[1]) == 4


def test_what_only_looks_like_a_checkpoint_is_passed_over(folder):
    save(folder, 1)
    (folder.path / "step_000002").mkdir()
    (folder.path / "step_000003").write_text("a file")
    for name in ("step_4.bak", "step_", "step_x", "steps", "step_000009.0123.tmp"):
        (folder.path / name).mkdir()
    found, faults = folder.newest()
    assert is_whole(found, 1) and len(faults) == 2
    assert folder.steps() == [1, 2, 3]


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(folder):
    save(folder, 1, 2)
    truncate(folder.path / "step_000002" / STATE)
    save(folder, 2)
    assert is_whole(folder.newest()[0], 2) and not folder.newest()[1]


@pytest.mark.parametrize("moment", [ADAPTER, STATE, INDEX, "fsync", "rename"])
@pytest.mark.parametrize(("kind", "sentence"), [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk of .* is full; free some space.*queue again"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk of .* is full; free some space.*queue again"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk of .* is full; free some space"),
    (PermissionError(errno.EACCES, "Permission denied"), "does not allow it; check its permissions.*queue again"),
    (OSError(errno.EROFS, "Read-only file system"), "does not allow it; check its permissions.*queue again"),
    (OSError(errno.EIO, "Input/output error"), "the disk of .* does not work as it should; check the disk"),
], ids=str)
def test_what_the_disk_refuses_is_a_sentence_and_the_former_checkpoint_stays(
        folder, monkeypatch, moment, kind, sentence):
    save(folder, 10)
    before, save_file, replace = files(folder), run_state.save_file, os.replace
    monkeypatch.setattr(disk, "PATIENCE", 0.0)

    def fail(*_arguments):
        raise kind

    def half(tensors, path):
        if path.name == moment:
            path.write_bytes(b"half")
            raise kind
        save_file(tensors, path)

    def last(source, target):
        return fail() if source.is_dir() else replace(source, target)

    monkeypatch.setattr(run_state, "save_file", half)
    if moment == INDEX:
        monkeypatch.setattr(disk, "write_json", fail)
    elif moment in ("fsync", "rename"):
        monkeypatch.setattr(disk.os, *("replace", last) if moment == "rename" else ("fsync", fail))
    with pytest.raises(UserError, match=f"step 20.*{sentence}") as error:
        save(folder, 20)
    assert str(folder.path) in str(error.value)
    assert ("free some space" in sentence) == ("free some space" in str(error.value))
    assert files(folder) == before and folder.steps() == [10] and not list(folder.path.glob("*.tmp"))
    assert is_whole(folder.newest()[0], 10)
    monkeypatch.undo()
    save(folder, 20)
    assert is_whole(folder.newest()[0], 20)


def test_what_cannot_be_written_at_all_leaves_nothing_behind(folder):
    save(folder, 1)
    before = files(folder)
    with pytest.raises(TypeError):
        folder.save(2, adapter(2), {"unknown": object()})
    assert files(folder) == before and not list(folder.path.glob("*.tmp"))


def test_the_newest_the_planned_and_the_best_stay(folder):
    save(folder, 1, 2, 3, 4, 5, 6, 9)
    truncate(folder.path / "step_000003" / STATE)
    folder.tidy(6, 4, 1, lambda step: step in (2, 4, 6))
    assert folder.steps() == [1, 2, 4, 5, 6, 9], "the best, what was planned, and the newest of the others; none beyond"
    folder.tidy(6, 1, 0, lambda step: False)
    assert folder.steps() == [6, 9] and is_whole(folder.load(6), 6) and (folder.path / "config.json").is_file()


def test_no_file_of_a_checkpoint_needs_pickle(folder):
    save(folder, 1)
    for name, content in files(folder).items():
        if name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".lock"):
            assert not content
        else:
            length = int.from_bytes(content[:8], "little")
            assert json.loads(content[8:8 + length])
