"""A run under Windows' rules: what it reads it does not hold, and what others hold for a moment does not end it."""

import shutil
import threading

import pytest
import torch

from wantune.tests.support import windows_rules
from wantune.tests.support.runs import begun
from wantune.trainer.base import files
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import caption_edit
from wantune.trainer.data import folder as dataset
from wantune.trainer.data.caption_files import CaptionFiles
from wantune.trainer.data.notes import Notes
from wantune.trainer.encoded import store
from wantune.trainer.lora import file as lora_file
from wantune.trainer.runs import attempts, checkpoints, history, reading
from wantune.trainer.runs import state as run_state
from wantune.trainer.runs.folder import RunFolder, delete_run

KEY = "0123456789abcdef" * 4
MODULE = "blocks.0.self_attn.q"


@pytest.fixture
def rules(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    with windows_rules.in_force(tmp_path) as found:
        yield found


@pytest.fixture
def folder(tmp_path, rules):
    return begun(tmp_path / "wantune", "lora", KEY, {"lora": {"rank": 2, "alpha": 2.0}})


def adapter(step: int) -> dict[str, torch.Tensor]:
    return {f"{MODULE}.lora_A.weight": torch.full((2, 5), float(step)), f"{MODULE}.lora_B.weight": torch.ones(5, 2)}


def save(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        folder.save(step, adapter(step), {"parameters": adapter(step)})


def held_for(path, seconds: float):
    """Open a file, and close it after so many seconds."""
    file = path.open("rb")
    threading.Timer(seconds, file.close).start()
    return file


def tree(path) -> set[str]:
    return {each.relative_to(path).as_posix() for each in path.rglob("*")}


def test_a_run_is_deleted_and_a_checkpoint_replaced_while_what_was_loaded_of_them_lives(folder):
    save(folder, 4)
    lora, found = checkpoints.load(folder.path, 4), folder.load(4)
    folder.save(4, adapter(9), {})
    folder.tidy(1_000_001, 1, 0, lambda _step: False)
    assert folder.steps() == []
    save(folder, 5)
    newest, _ = folder.newest()
    delete_run(folder.path)
    assert list(folder.path.parent.iterdir()) == []
    for tensors, step in ((found.adapter, 4), (newest.adapter, 5), (newest.state["parameters"], 5)):
        assert torch.equal(tensors[f"{MODULE}.lora_A.weight"], adapter(step)[f"{MODULE}.lora_A.weight"])
    assert torch.equal(lora[f"diffusion_model.{MODULE}.lora_A.weight"], adapter(4)[f"{MODULE}.lora_A.weight"])


def test_a_lora_file_can_be_deleted_while_its_lora_lives(tmp_path, rules):
    path = tmp_path / "loras" / "a.safetensors"
    lora_file.save(path, lora_file.from_adapter(adapter(3), 2.0), {"name": "a"})
    found = lora_file.load(path)
    path.unlink()
    assert found.metadata["name"] == "a" and float(found[f"diffusion_model.{MODULE}.lora_A.weight"].sum()) == 30


def test_a_virus_scanner_that_reads_a_new_checkpoint_only_delays_it(folder, monkeypatch):
    seal, readers = run_state._seal, []

    def scanned(path):
        readers.append(held_for(path, 0.2))
        return seal(path)

    monkeypatch.setattr(run_state, "_seal", scanned)
    save(folder, 2)
    assert all(reader.closed for reader in readers) and folder.newest()[0].step == 2


def test_a_page_that_reads_a_file_only_delays_its_writing(folder):
    save(folder, 2, 4)
    folder.mark_best(2, 0.5)
    held_for(folder.path / "best.json", 0.2)
    folder.mark_best(4, 0.25)
    assert checkpoints.checkpoints(folder.path).best == 4
    assert not list(folder.path.glob("*.tmp"))


def test_a_program_that_keeps_a_file_is_named_as_the_reason_and_room_is_not(folder):
    save(folder, 2)
    folder.mark_best(2, 0.5)
    with (folder.path / "best.json").open("rb"), pytest.raises(UserError, match="another program has") as told:
        folder.mark_best(2, 0.25)
    assert "space" not in str(told.value) and history.read_json(folder.path / "best.json")["loss"] == 0.5


def test_a_run_whose_video_is_played_stays_as_it_is_and_is_deleted_later(folder):
    save(folder, 2)
    video = folder.path / "samples" / "step_000002_0.mp4"
    video.parent.mkdir()
    video.write_bytes(b"film")
    before = tree(folder.path)
    with video.open("rb"), pytest.raises(UserError, match="cannot be deleted .* another program .* delete it again"):
        delete_run(folder.path)
    assert tree(folder.path) == before and history.is_run(folder.path) and folder.newest()[0].step == 2
    delete_run(folder.path)
    assert not folder.path.exists()


def test_what_is_left_of_a_deleted_run_is_no_run_and_goes_with_the_next(folder, monkeypatch):
    other = begun(folder.path.parent, "other", "f" * 64, {})

    def refuse(*_arguments, **_options):
        raise windows_rules.refusal(windows_rules.BUSY, "a")

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    delete_run(folder.path)
    monkeypatch.undo()
    (left,) = (path for path in folder.path.parent.iterdir() if path != other.path)
    assert (left / "config.json").is_file() and not history.is_run(left)
    again = begun(folder.path.parent, "lora", KEY, {})
    assert again.path != left
    delete_run(again.path)
    assert list(folder.path.parent.iterdir()) == [other.path]


def test_a_checkpoint_that_a_program_holds_stays_whole_and_goes_the_next_time(folder):
    save(folder, 1, 2, 3)
    with (folder.path / "step_000001" / run_state.ADAPTER).open("rb"):
        folder.tidy(3, 1, 0, lambda _step: False)
        assert folder.steps() == [1, 3] and folder.load(1).step == 1
    folder.tidy(3, 1, 0, lambda _step: False)
    assert folder.steps() == [3]


def test_half_a_file_that_a_program_holds_does_not_keep_a_run_from_being_opened(folder):
    left = folder.path / "step_000009.0123.tmp" / "adapter.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with left.open("rb"):
        again = begun(folder.path.parent, "lora", KEY, {})
        assert again.steps() == []
    begun(folder.path.parent, "lora", KEY, {})
    assert not left.parent.exists()


def test_the_longest_paths_fit_into_windows_where_the_output_folder_is_not_deep(tmp_path, rules):
    folder = begun(tmp_path / "wantune", "x" * 120, KEY, {})
    save(folder, 1_000_000)
    folder.tidy(1_000_001, 1, 0, lambda _step: False)
    store.write_tensor(store.Store(tmp_path / "wantune" / "cache").path("latents", KEY), torch.zeros(3))
    assert len(rules.longest) <= 259 - len(r"C:\Users\a_long_name\Documents\AI\ComfyUI_windows\output")


def test_a_cache_file_that_a_scanner_locks_is_read_when_it_lets_go_and_never_deleted(tmp_path, rules, monkeypatch):
    path = store.Store(tmp_path / "cache").path("latents", "a")
    store.write_tensor(path, torch.ones(3))
    read, refusals = store._read, [windows_rules.refusal(32, path)] * 2

    def locked(path):
        if refusals:
            raise refusals.pop()
        return read(path)

    monkeypatch.setattr(store, "_read", locked)
    assert torch.equal(store.read_tensor(path), torch.ones(3))
    refusals += [windows_rules.refusal(32, path)] * 99
    with pytest.raises(UserError, match="another program has a file open"):
        store.read_tensor(path)
    assert path.exists()


def test_a_list_of_runs_that_is_read_while_a_file_is_replaced_waits_a_moment(folder, monkeypatch):
    """Windows refuses to open a file just then."""
    monkeypatch.setattr(history, "MOMENT", 0.2)
    monkeypatch.setattr(files, "MOMENT", 0.2)
    (folder.path / "log.jsonl").write_bytes(b'{"event": "Finished", "step": 4, "reason": "done"}\n')
    expected, opening, refusals = history.summary(folder.path), windows_rules.builtins.open, []
    history._summary.cache_clear()
    reading._parsed.cache_clear()

    def busy(path, *arguments, **options):
        if str(path).startswith(str(folder.path)) and path not in refusals:
            refusals.append(path)
            raise windows_rules.refusal(5, path)
        return opening(path, *arguments, **options)

    monkeypatch.setattr(windows_rules.io, "open", busy)
    assert history.is_run(folder.path) and history.summary(folder.path) == expected and len(refusals) >= 2


def test_a_run_whose_config_is_just_being_replaced_is_found(folder, monkeypatch):
    monkeypatch.setattr(files, "MOMENT", 0.2)
    opening, refusals = windows_rules.builtins.open, []

    def busy(path, *arguments, **options):
        if str(path).endswith("config.json") and not refusals:
            refusals.append(path)
            raise windows_rules.refusal(5, path)
        return opening(path, *arguments, **options)

    monkeypatch.setattr(windows_rules.io, "open", busy)
    (found,) = attempts.attempts(folder.path.parent, KEY)
    assert found.path == folder.path and refusals


def pictured(root, *names: str) -> tuple:
    """(the entry of a picture, the caption files) of a folder with these files."""
    root.mkdir()
    for name in names:
        (root / name).write_bytes(b"old")
    entries = list(dataset.walk(root, Notes()))
    picture = next(entry for entry in entries if entry.suffix != ".txt")
    return picture, CaptionFiles.among(entries, Notes())


def test_a_caption_is_saved_when_an_editor_lets_go_of_it(tmp_path, rules):
    picture, texts = pictured(tmp_path / "data", "a.png", "a.txt")
    held_for(tmp_path / "data" / "a.txt", 0.2)
    assert caption_edit.save(picture, texts, "new\n\u732b", "old").read_bytes() == "new\n\u732b".encode()
    assert (tmp_path / "data" / "a.txt.bak").read_bytes() == b"old"
    picture, texts = pictured(tmp_path / "more", "a.png", "a.txt")
    with (tmp_path / "more" / "a.txt").open("rb"), pytest.raises(UserError, match="another program .* save it again"):
        caption_edit.save(picture, texts, "new", "old")
    assert (tmp_path / "more" / "a.txt").read_bytes() == b"old"
    shutil.rmtree(tmp_path / "more")


def test_a_caption_belongs_to_its_picture_in_whatever_case_both_are_named(tmp_path, rules, monkeypatch):
    monkeypatch.setattr(dataset, "FOLDS_CASE", True)
    picture, texts = pictured(tmp_path / "data", "IMG_1.JPG", "img_1.TXT")
    assert texts.read(picture) == ["old"] and list(texts.unused()) == []
    caption_edit.save(picture, texts, "new", "old")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["IMG_1.JPG", "img_1.TXT", "img_1.TXT.bak"]
