"""The rules of tests/support/windows_rules.py are Windows' own: what it refuses is refused, and nothing else."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import windows_rules
from wantune.trainer.base import files, tensors


@pytest.fixture
def rules(tmp_path):
    with windows_rules.in_force(tmp_path) as found:
        yield found


@pytest.fixture
def reader(tmp_path, rules):
    """An open file in a folder."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "file.txt"
    path.write_text("old", encoding="utf-8")
    (tmp_path / "new").write_text("new", encoding="utf-8")
    with path.open("rb") as file:
        yield file


@pytest.fixture
def held(reader):
    """Its path."""
    return Path(reader.name)


@pytest.mark.parametrize("change", [
    lambda path: path.unlink(), lambda path: os.remove(path), lambda path: path.rename(path.with_name("other")),
    lambda path: path.replace(path.with_name("other")), lambda path: os.replace(path.parents[1] / "new", path),
    lambda path: path.parent.rename(path.parents[1] / "other"), lambda path: shutil.rmtree(path.parent),
    lambda path: shutil.move(path.parent, path.parents[1] / "other"),
    lambda path: os.unlink(path.with_name(path.name.upper()))])
def test_an_open_file_is_neither_renamed_nor_replaced_nor_deleted_nor_its_folder(held, change):
    with pytest.raises(PermissionError) as caught:
        change(held)
    assert caught.value.winerror == windows_rules.BUSY and held.read_text(encoding="utf-8") == "old"


def test_a_mapped_file_is_neither_deleted_nor_emptied(tmp_path, rules):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    mapped = load_file(path)
    with pytest.raises(PermissionError):
        path.unlink()
    with pytest.raises(OSError, match="1224"):
        path.write_bytes(b"")
    del mapped
    path.unlink()


def test_a_closed_file_and_its_folder_can_be_changed(tmp_path, rules):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_bytes(b"1")
    path.with_name("new").write_bytes(b"2")
    os.replace(path.with_name("new"), path)
    path.parent.rename(tmp_path / "other")
    assert (tmp_path / "other" / "file").read_bytes() == b"2"
    shutil.rmtree(tmp_path / "other")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_replaced_and_rename_replaces_nothing(tmp_path, rules):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_bytes(b"")
    with pytest.raises(PermissionError):
        os.replace(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileExistsError):
        os.rename(tmp_path / "a.txt", tmp_path / "b.txt")


def test_names_of_another_case_are_the_same_file(tmp_path, rules):
    (tmp_path / "Folder").mkdir()
    (tmp_path / "Folder" / "A.TXT").write_bytes(b"1")
    assert (tmp_path / "folder" / "a.txt").read_bytes() == b"1" and (tmp_path / "FOLDER").is_dir()
    (tmp_path / "folder" / "a.txt").write_bytes(b"2")
    assert os.listdir(tmp_path / "folder") == ["A.TXT"] and (tmp_path / "Folder" / "A.TXT").read_bytes() == b"2"
    os.rename(tmp_path / "folder" / "a.txt", tmp_path / "folder" / "a.txt")
    assert os.listdir(tmp_path / "folder") == ["a.txt"], "a name may be written in another case"
    with pytest.raises(FileExistsError):
        (tmp_path / "FOLDER").mkdir()


@pytest.mark.parametrize("name", ["con", "NUL.txt", "com1", "a:b", "a?", "a.", "a ", 'a"', "a\n"])
def test_what_is_no_name_is_refused(tmp_path, rules, name):
    for make in (lambda path: path.write_bytes(b""), lambda path: path.mkdir(),
                 lambda path: (tmp_path / "right").replace(path)):
        (tmp_path / "right").write_bytes(b"")
        with pytest.raises(OSError, match=str(windows_rules.BAD_NAME)):
            make(tmp_path / name)
    (tmp_path / "console.txt").write_bytes(b"")


def test_what_is_open_for_reading_alone_is_not_synced_and_text_has_windows_ends_of_lines(tmp_path, rules):
    path = tmp_path / "text"
    path.write_text("a\n\u00e4", encoding="utf-8")
    assert path.read_bytes() == b"a\r\n\xc3\xa4" and path.read_text(encoding="utf-8") == "a\n\u00e4"
    with path.open("rb") as file, pytest.raises(OSError, match="Bad file"):
        os.fsync(file.fileno())
    files.sync(path)
    assert rules.longest == "text"


def test_all_is_as_it_was_afterwards(tmp_path):
    before = open, os.unlink, os.stat, Path.open
    with windows_rules.in_force(tmp_path):
        assert open is not before[0]
    assert before == (open, os.unlink, os.stat, Path.open)


# What trainer/base/files.py makes of them.


@pytest.mark.parametrize("change", [
    lambda path: files.write_json(path, {}), files.delete, lambda path: files.delete(path.parent),
    lambda path: files.replace(path.parent, path.parents[1] / "other")])
def test_what_a_program_holds_for_a_moment_is_changed_when_it_lets_go(reader, held, change):
    threading.Timer(0.3, reader.close).start()
    change(held)
    assert reader.closed and not list(held.parents[1].rglob("*.tmp"))
    assert not held.exists() or held.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("change", [
    lambda path: files.write_json(path, {}), files.delete, lambda path: files.delete(path.parent)])
def test_what_a_program_does_not_let_go_of_stays_whole(held, change, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    held.with_name("beside").write_bytes(b"1")
    start = time.monotonic()
    with pytest.raises(PermissionError):
        change(held)
    assert 0.1 < time.monotonic() - start < 2
    assert held.read_text(encoding="utf-8") == "old" and held.with_name("beside").exists()
    assert not list(held.parents[1].rglob("*.tmp"))


def test_what_was_read_of_a_tensor_file_does_not_hold_it(tmp_path, rules, monkeypatch):
    monkeypatch.setattr(tensors, "PORTION", 100)
    expected = {f"{number}": torch.randn(number, 7) for number in range(9)} | {"half": torch.ones(3).half()}
    save_file(expected, tmp_path / "a", {"format": "pt"})
    found, metadata = tensors.read(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert found.keys() == expected.keys() and metadata == {"format": "pt"}
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype
               for name, value in expected.items())
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        tensors.read(tmp_path / "folder")
    save_file({}, tmp_path / "a")
    assert tensors.read(tmp_path / "a") == ({}, {})
