"""The cache's files: believed only with their checksum, shared, counted, pruned."""

import json
import os
import time
from dataclasses import astuple

import pytest
import torch
from filelock import FileLock

from wantune.trainer.base.errors import UserError
from wantune.trainer.base.files import Stamp
from wantune.trainer.base.remembered import Remembered
from wantune.trainer.encoded import store
from wantune.trainer.encoded.store import Store


@pytest.fixture
def cache(tmp_path):
    return Store(tmp_path / "cache")


def written(cache: Store, key: str = "a", kind: str = "latents"):
    path = cache.path(kind, key)
    cache.write(path, torch.arange(1000.0).reshape(10, 100))
    return path


def reopened(cache: Store) -> Store:
    """The cache as another process finds it, its index included."""
    with cache.filling():
        pass
    return Store(cache.folder)


def test_what_is_written_is_read_again(cache):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.randn(3, 5).to(dtype)
        path = cache.path("texts", str(dtype))
        cache.write(path, tensor)
        assert torch.equal(store.read_tensor(path), tensor) and cache.use(path) == 3
    assert cache.use(cache.path("texts", "missing")) == 0


def test_every_flipped_byte_is_noticed(cache):
    """Also right after it was written, and at whatever place: header, metadata, or values."""
    path = written(cache)
    whole = path.read_bytes()
    cache = reopened(cache)
    for place in [*range(0, 200), *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1:])
        assert Store(cache.folder).use(path) == 0, place
    path.write_bytes(whole)
    assert Store(cache.folder).use(path) == 10


def test_a_damaged_file_that_is_read_in_training_is_deleted_and_graphs_look_again(cache):
    path = written(cache)
    before = cache.id
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its checksum is wrong.*queue again"):
        store.read_tensor(path)
    assert not path.exists() and cache.id != before


def test_the_id_stays_until_files_are_taken_away(cache):
    path = written(cache)
    before = cache.id
    assert cache.id == before == Store(cache.folder).id
    written(cache, "b")
    assert cache.id == before
    cache.prune(None, 0)
    assert cache.id != before and not path.exists()


def test_a_whole_file_is_not_read_a_second_time(cache, monkeypatch):
    path = written(cache)
    cache = reopened(cache)
    monkeypatch.setattr(store, "_read", lambda path: pytest.fail("read"))
    assert cache.use(path) == 10


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"version": "0", "known": {}}', b"\xff\xfe"])
def test_a_damaged_index_costs_reading_and_nothing_else(cache, damage):
    path = written(cache)
    cache = reopened(cache)
    (cache.folder / "index.sqlite").write_bytes(damage)
    cache = Store(cache.folder)
    assert cache.use(path) == 10
    assert cache.prune(1.0, None)[0].files == 0


def test_the_size_is_that_of_the_files(cache):
    paths = [written(cache, key, kind) for key, kind in (("a", "latents"), ("b", "texts"), ("c", "masks"))]
    assert cache.size() == store.Size(3, sum(path.stat().st_size for path in paths))
    assert "3 files, 0.0 MiB" in str(cache.size())


def test_pruning_by_age_goes_by_the_last_use(cache):
    paths = [written(cache, key) for key in "abc"]
    with cache.filling():
        cache.use(paths[0])
    index = Remembered(cache.folder / "index.sqlite", "1")
    for name, path, days in (("b", paths[1], 3), ("c", paths[2], 9)):
        known = index.get(f"latents/{name}", Stamp.of(path))
        known["used"] -= days * 86400
        index.put(f"latents/{name}", Stamp.of(path), known, written_by_us=True)
    index.save()
    deleted, left = Store(cache.folder).prune(5.0, None)
    assert (deleted.files, left.files) == (1, 2) and [path.exists() for path in paths] == [True, True, False]
    deleted, left = Store(cache.folder).prune(2.0, None)
    assert (deleted.files, left.files) == (1, 1) and paths[0].exists()
    assert deleted.bytes + left.bytes == 2 * left.bytes


def test_pruning_goes_by_the_last_use_that_an_earlier_version_wrote_down(cache):
    paths = [written(cache, key) for key in "ab"]
    used = {"a": time.time() - 9 * 86400, "b": time.time()}
    known = {f"latents/{path.stem}": [astuple(Stamp.of(path)), {"used": int(used[path.stem]), "length": 10}]
             for path in paths}
    (cache.folder / "index.json").write_text(json.dumps({"version": "1", "known": known}))
    assert Store(cache.folder).prune(5.0, None)[0].files == 1
    assert [path.exists() for path in paths] == [False, True] and not (cache.folder / "index.json").exists()


def test_without_an_index_the_files_own_times_count(cache):
    paths = [written(cache, key) for key in "ab"]
    os.utime(paths[0], (time.time() - 10 * 86400,) * 2)
    assert Store(cache.folder).prune(5.0, None)[0].files == 1
    assert [path.exists() for path in paths] == [False, True]


def test_pruning_by_size_takes_what_was_used_longest_ago(cache):
    paths = [written(cache, key) for key in "abcd"]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (time.time() - age * 3600 - 60,) * 2)
    one = paths[0].stat().st_size
    deleted, left = Store(cache.folder).prune(None, int(2.5 * one))
    assert (deleted.files, left) == (2, store.Size(2, 2 * one))
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_pruning_everything_leaves_nothing_and_filling_goes_on(cache):
    path = written(cache)
    assert cache.prune(0.0, None)[1] == store.Size(0, 0)
    assert cache.use(path) == 0
    written(cache)
    assert cache.use(path) == 10


def test_what_a_killed_process_left_half_written_is_removed(cache):
    path = written(cache)
    left = path.with_name("b.safetensors.0123.tmp")
    left.write_bytes(b"half")
    with cache.filling():
        assert not left.exists()
    assert path.exists()


def test_what_another_process_is_writing_is_left_alone(cache):
    path = written(cache)
    theirs = path.with_name("b.safetensors.0123.tmp")
    with FileLock(cache.folder / "lock"):
        theirs.write_bytes(b"half")
        with cache.filling():
            assert theirs.exists(), "the other one may still be writing it"
    with Store(cache.folder).filling():
        assert not theirs.exists()


@pytest.mark.parametrize("refusal", [
    OSError(37, "No locks available"), NotImplementedError("no flock here"), PermissionError(13, "Permission denied")])
def test_a_drive_without_locks_and_a_read_only_folder_are_used_without_and_that_is_said_once(
        cache, refusal, monkeypatch, caplog):
    path = written(cache)
    left = path.with_name("b.safetensors.0123.tmp")
    left.write_bytes(b"half")

    def refuse(*_args, **_kwargs):
        raise refusal

    monkeypatch.setattr(store.FileLock, "acquire", refuse)
    for _ in range(2):
        with Store(cache.folder).filling():
            assert left.exists(), "another may be writing it"
            assert Store(cache.folder).use(path) == 10
    assert [record.message.startswith(f"The cache in {cache.folder} cannot be locked") for record in caplog.records
            ] == [True]


def test_a_cache_that_cannot_be_written_is_one_sentence_and_has_an_id(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = Store(tmp_path / "cache")
    with pytest.raises(UserError, match="cache cannot be written"), cache.filling():
        pass
    assert cache.id == cache.id


def test_two_may_fill_one_cache_in_turns(cache):
    other = Store(cache.folder)
    with cache.filling(), other.filling():
        path = written(cache)
        written(other)
    assert Store(cache.folder).use(path) == 10


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(cache, monkeypatch):
    first = written(cache)

    def full(_tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        written(cache, "b")
    assert [path.name for path in cache.folder.rglob("*.*") if path.parent.name == "latents"] == [first.name]
