"""What is remembered of files between scans: nothing is read twice, and nothing that changed is believed."""

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import asdict
from fractions import Fraction

import pytest

from wantune.tests.support import clips
from wantune.tests.support.folders import config, draw, names, reasons, sample_of, scan
from wantune.trainer.base import remembered
from wantune.trainer.base.files import Stamp
from wantune.trainer.base.remembered import Remembered
from wantune.trainer.data import facts
from wantune.trainer.data import scan as scanning
from wantune.trainer.data.folder import Entry

SETTINGS = {"frame_buckets": (1, 17)}


@pytest.fixture
def root(tmp_path):
    """Two pictures, one of them masked, a clip of odd times and a damaged file."""
    root = tmp_path / "data"
    draw(root / "a.png", 1, "zwx a")
    draw(root / "sub" / "b.jpg", 2, "zwx b")
    draw(root / "masks" / "a.png", 3)
    clips.at_rate(root / "clip.mp4", Fraction(30000, 1001), 40)
    (root / "empty.png").write_bytes(b"")
    return root


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A folder for what is remembered; all files are old enough."""
    monkeypatch.setattr(remembered, "SETTLED", -1e9)
    return tmp_path / "memory"


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in any order."""
    read, seen = facts._read, []
    monkeypatch.setattr(facts, "_read", lambda entry: seen.append(entry.name) or read(entry))
    return seen


def run(path, statement: str) -> list[tuple]:
    """One statement in the file, as any program may run it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def known_in(path) -> set[str]:
    return {name.decode() for (name,) in run(path, "SELECT name FROM known") if name is not None}


def test_a_second_scan_reads_nothing_and_finds_the_same(root, memory, reads):
    first = scan(root, memory, **SETTINGS)
    assert sorted(reads) == ["a.png", "clip.mp4", "empty.png", "masks/a.png", "sub/b.jpg"]
    reads.clear()
    assert scan(root, memory, **SETTINGS) == first and not reads
    assert "empty.png is empty" in reasons(first)["empty.png"], "what is wrong with a file is remembered, too"


def test_other_settings_read_nothing_either(root, memory, reads):
    scan(root, memory, **SETTINGS)
    (root / "a.txt").write_text("zwx another caption")
    reads.clear()
    manifest = scan(root, memory, resolution=32, frame_buckets=(1, 33), num_repeats=1)
    assert not reads and sample_of(manifest, "a.png").captions == ("zwx another caption",)


def test_without_a_folder_for_it_every_scan_reads(root, reads):
    scan(root, **SETTINGS)
    scan(root, **SETTINGS)
    assert len(reads) == 10


def test_two_folders_do_not_mix_what_is_known_of_them(root, memory, reads, tmp_path):
    scan(root, memory, **SETTINGS)
    draw(tmp_path / "other" / "a.png", 7, "zwx", size=(70, 70))
    assert sample_of(scan(tmp_path / "other", memory), "a.png").width == 70
    reads.clear()
    scan(root, memory, **SETTINGS)
    assert not reads


def test_a_file_that_changed_is_read_again_even_at_the_same_size(root, memory, reads):
    path = draw(root / "c.bmp", 5, "zwx c")
    os.utime(path, ns=(5 * 10**9, 5 * 10**9))
    before = sample_of(scan(root, memory, **SETTINGS), "c.bmp")
    draw(path, 6)
    os.utime(path, ns=(6 * 10**9, 6 * 10**9))  # the clock of a file system may stand still between the two
    reads.clear()
    after = sample_of(scan(root, memory, **SETTINGS), "c.bmp")
    assert reads == ["c.bmp"] and after.stamp.size == before.stamp.size and after.digest != before.digest


@pytest.mark.parametrize("field", ["size", "modified", "changed"])
def test_any_part_of_the_stamp_tells_a_change(tmp_path, field):
    known = Remembered(tmp_path / "known.sqlite", "1")
    stamp = Stamp(10, 20, 30)
    known.put("a", stamp, {"x": 1})
    assert known.get("a", stamp) == {"x": 1} and known.get("b", stamp) is None
    assert known.get("a", Stamp(**asdict(stamp) | {field: 99})) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has the time of creation there")
def test_a_change_that_hides_its_time_is_seen_all_the_same(root, memory, reads):
    scan(root, memory, **SETTINGS)
    path, status = root / "a.png", (root / "a.png").stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the last checksum of its pixels
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    reads.clear()
    assert "a.png" in reasons(scan(root, memory, **SETTINGS)) and reads == ["a.png"]


def test_a_damaged_file_that_is_mended_is_used(root, memory, reads):
    scan(root, memory, **SETTINGS)
    draw(root / "empty.png", 9, "zwx mended")
    assert "empty.png" in names(scan(root, memory, **SETTINGS))


@pytest.mark.parametrize("damage", [
    b"", b"{", b"\xff\xfe\x00", b"[]", b"SQLite format 3\0", b"cut", b"cut at a page",
    "UPDATE known SET version = '0'", "UPDATE known SET facts = 3", "UPDATE known SET facts = '[]'",
    "UPDATE known SET facts = x'ff00'", "UPDATE known SET stamp = NULL", "UPDATE known SET facts = '{'",
    "UPDATE known SET facts = replace(facts, '7', '8'), stamp = replace(stamp, '7', '8')",
    "DROP TABLE known", "DELETE FROM known",
])
def test_a_memory_that_cannot_be_used_costs_the_reading_and_nothing_else(root, memory, reads, damage):
    first = scan(root, memory, **SETTINGS)
    (path,) = memory.iterdir()
    whole = path.read_bytes()
    if isinstance(damage, str):
        run(path, damage)
    else:
        path.write_bytes({b"cut": whole[:len(whole) // 2 + 100], b"cut at a page": whole[:4096]}.get(damage, damage))
    reads.clear()
    assert scan(root, memory, **SETTINGS) == first and len(reads) == 5
    assert list(memory.iterdir()) == [path] and len(known_in(path)) == 5, "and is written anew"
    reads.clear()
    assert scan(root, memory, **SETTINGS) == first and not reads


def test_a_memory_of_another_layout_costs_the_reading_and_nothing_else(root, memory, reads):
    first = scan(root, memory, **SETTINGS)
    (path,) = memory.iterdir()
    run(path, "DROP TABLE known")
    run(path, "CREATE TABLE known (name BLOB, something_else TEXT)")
    run(path, "INSERT INTO known VALUES (x'612e706e67', 'of a.png')")
    reads.clear()
    assert scan(root, memory, **SETTINGS) == first and len(reads) == 5


def as_before(path, known: dict, version: str) -> None:
    """The JSON file that earlier versions kept beside the database of that name."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"version": version, "known": known}))


def test_what_an_earlier_version_remembered_is_taken_over(root, memory, reads):
    first = scan(root, memory, **SETTINGS)
    (path,) = memory.iterdir()
    rows = run(path, "SELECT name, stamp, facts FROM known")
    path.unlink()
    as_before(path, {name.decode(): [[int(part) for part in stamp.split()], json.loads(facts)]
                     for name, stamp, facts in rows}, facts.VERSION)
    reads.clear()
    assert scan(root, memory, **SETTINGS) == first and not reads
    assert list(memory.iterdir()) == [path] and len(known_in(path)) == 5


def test_what_is_taken_over_does_not_replace_what_is_known_by_now(tmp_path):
    path, old, new = tmp_path / "known.sqlite", Stamp(1, 2, 3), Stamp(4, 5, 6)
    known = Remembered(path, "1")
    known.put("a", new, {"x": "new"})
    known.save()
    as_before(path, {"a": [[1, 2, 3], {"x": "old"}], "b": [[1, 2, 3], {"x": "old"}]}, "1")
    known = Remembered(path, "1")
    assert known.get("a", new) == {"x": "new"} and known.get("b", old) == {"x": "old"}
    assert not path.with_suffix(".json").exists()


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"version": "0", "known": {"a": [[1, 2, 3], {"x": 1}]}}',
    b'{"version": "1", "known": {"a": 3, "b": [], "c": [4, {}], "d": [[1, 2, 3], 4]}}', b'{"version": "1", "known": 3}',
    pytest.param(b"[" * 100_000, id="deep"),
])
def test_a_file_of_an_earlier_version_that_cannot_be_used_is_forgotten(tmp_path, content):
    (tmp_path / "known.json").write_bytes(content)
    known = Remembered(tmp_path / "known.sqlite", "1")
    assert not any(known.get(name, Stamp(1, 2, 3)) for name in "abcd")
    assert not (tmp_path / "known.json").exists()


def test_another_version_of_the_readers_reads_everything_again(root, memory, reads, monkeypatch):
    scan(root, memory, **SETTINGS)
    monkeypatch.setattr(facts, "VERSION", facts.VERSION + "1")
    reads.clear()
    scan(root, memory, **SETTINGS)
    assert len(reads) == 5


def test_a_memory_that_cannot_be_written_costs_nothing(root, memory):
    memory.write_text("a file in the place of the folder")
    assert names(scan(root, memory, **SETTINGS)) == ["a.png", "clip.mp4", "sub/b.jpg"]


@pytest.mark.parametrize(("age", "is_kept"), [(-5.0, False), (0.0, False), (1.9, False), (2.1, True), (1000.0, True)])
@pytest.mark.parametrize("field", ["modified", "changed"])
def test_a_file_changed_within_two_seconds_is_not_remembered(tmp_path, monkeypatch, age, is_kept, field):
    monkeypatch.setattr(remembered.time, "time", lambda: 10_000.0)
    stamp = Stamp(**{"size": 1, "modified": 0, "changed": 0, field: int((10_000 - age) * 1e9)})
    known = Remembered(tmp_path / "known.sqlite", "1")
    known.put("a", stamp, {"x": 1})
    assert (known.get("a", stamp) is not None) == is_kept
    known.put("b", stamp, {"x": 1}, written_by_us=True)
    assert known.get("b", stamp), "what we wrote ourselves nobody else is writing"


def test_new_files_are_read_by_each_scan_until_they_have_settled(root, tmp_path, reads, monkeypatch):
    now = max(Stamp.of(path).changed for path in root.rglob("*")) / 1e9
    for seconds, count in ((1, 5), (1.5, 5), (60, 5), (60, 0)):
        monkeypatch.setattr(remembered.time, "time", lambda seconds=seconds: now + seconds)
        reads.clear()
        scan(root, tmp_path / "memory", **SETTINGS)
        assert len(reads) == count


def test_the_times_of_a_clip_come_back_as_the_same_fractions(root, memory, reads):
    first = sample_of(scan(root, memory, **SETTINGS), "clip.mp4").source
    second = sample_of(scan(root, memory, **SETTINGS), "clip.mp4").source
    assert len(reads) == 5 and second == first
    assert first.seconds.denominator not in (1, 1000) and isinstance(second.rounding, Fraction)
    assert {type(value) for value in asdict(first).values()} == {type(value) for value in asdict(second).values()}


def test_facts_of_each_kind_come_back_from_the_file_as_they_were(root, memory, tmp_path):
    names = ["a.png", "clip.mp4", "empty.png"]
    known = Remembered(tmp_path / "known.sqlite", "1")
    before = [facts.probe(Entry(root / name, name), known) for name in names]
    known.save()
    again = Remembered(tmp_path / "known.sqlite", "1")
    assert again.names() == names
    after = [facts.probe(Entry(root / name, name), again) for name in names]
    assert after[:2] == before[:2] and after[2].fault == before[2].fault


def test_what_is_known_of_files_that_are_gone_is_dropped(root, memory):
    scan(root, memory, **SETTINGS)
    (root / "clip.mp4").unlink()
    scan(root, memory, **SETTINGS)
    (path,) = memory.iterdir()
    assert known_in(path) == {"a.png", "sub/b.jpg", "masks/a.png", "empty.png"}


def test_a_memory_with_nothing_new_is_not_written_again(root, memory):
    scan(root, memory, **SETTINGS)
    (path,) = memory.iterdir()
    os.utime(path, ns=(10**9, 10**9))
    scan(root, memory, **SETTINGS)
    assert path.stat().st_mtime_ns == 10**9


def test_what_the_system_refuses_is_not_remembered(root, memory, reads, monkeypatch):
    counted = facts._read

    def refuse(entry):
        if entry.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return counted(entry)

    with monkeypatch.context() as refusing:
        refusing.setattr(facts, "_read", refuse)
        assert "a.png cannot be read (Permission denied); check" in reasons(scan(root, memory, **SETTINGS))["a.png"]
    assert "a.png" in names(scan(root, memory, **SETTINGS))


def test_what_a_stopped_scan_read_is_remembered(root, memory, reads):
    progress = scanning.scanning(config(root, **SETTINGS), memory)
    first = next(progress).name
    progress.close()
    reads.clear()
    scan(root, memory, **SETTINGS)
    assert first not in reads


@pytest.mark.parametrize("name", ["a", "\u00fc \u4e2d", os.fsdecode(b"\xff not text"), "it's; DROP TABLE known"])
def test_every_name_and_time_that_a_file_can_have_is_remembered(tmp_path, name):
    stamp = Stamp(2**62, 2**70, -5)  # NTFS has years that do not fit into 64 bits of nanoseconds
    known = Remembered(tmp_path / "known.sqlite", "1")
    known.put(name, stamp, {"x": "\ud800"}, written_by_us=True)
    known.save()
    again = Remembered(tmp_path / "known.sqlite", "1")
    assert again.get(name, stamp) == {"x": "\ud800"} and again.names() == [name]
    again.keep(set())
    assert again.get(name, stamp) is None and Remembered(tmp_path / "known.sqlite", "1").names() == []


def test_the_file_is_closed_when_it_is_saved_also_without_anything_new(tmp_path, monkeypatch):
    """Windows deletes no file that is open."""
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: opened.append(connect(*args, **more)) or opened[-1])
    known = Remembered(tmp_path / "known.sqlite", "1")
    for _ in range(2):
        known.get("a", Stamp(1, 2, 3))
        known.put("b", Stamp(1, 2, 3), {})
        known.save()
        known.get("a", Stamp(1, 2, 3))
        known.save()
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_it_works_in_memory_alone():
    known = Remembered(None, "1")
    known.put("a", Stamp(1, 2, 3), {"x": 1})
    known.put("b", Stamp(1, 2, 3), {"x": 2})
    known.keep({"a"})
    known.save()
    assert known.get("a", Stamp(1, 2, 3)) == {"x": 1} and known.names() == ["a"]
