"""The small databases: shared by processes, killed at any moment, on disks that are full, read-only or locked."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from wantune.trainer.base import database
from wantune.trainer.base.database import Database
from wantune.trainer.base.files import Stamp
from wantune.trainer.base.remembered import Remembered

ROOT = Path(__file__).resolve().parents[3]
STAMP = Stamp(1, 2, 3)
START = f"""
import sys, types
from pathlib import Path
pack = types.ModuleType("wantune")
pack.__path__ = [{str(ROOT)!r}]
sys.modules["wantune"] = pack
from wantune.trainer.base.files import Stamp
from wantune.trainer.base.remembered import Remembered
path, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
"""


def process(path: Path, name: str, body: str) -> subprocess.Popen:
    """Another process that runs `body` as soon as it is told to."""
    running = subprocess.Popen([sys.executable, "-c", START + body, path, name], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdout.readline() == "ready\n"
    return running


def let(*running: subprocess.Popen) -> None:
    for each in running:
        each.stdin.write("\n")
        each.stdin.flush()


def lock(path: Path) -> sqlite3.Connection:
    """As another process that is in the middle of writing."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


@pytest.fixture
def path(tmp_path):
    """A database with one entry."""
    known = Remembered(tmp_path / "known.sqlite", "1")
    known.put("first", STAMP, {"x": 1})
    known.save()
    return tmp_path / "known.sqlite"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(database, "WAIT", 0.05)


ADD = """
for round in range(30):
    known = Remembered(path, "1")
    for number in range(10):
        known.put(f"{name} {round} {number}", Stamp(1, 2, 3), {"x": number}, written_by_us=True)
    known.save()
"""


def test_two_processes_that_write_at_one_time_both_keep_their_rows(path):
    running = [process(path, name, ADD) for name in ("left", "right")]
    let(*running)
    assert [each.wait(60) for each in running] == [0, 0]
    known = Remembered(path, "1")
    assert len(known.names()) == 1 + 2 * 30 * 10
    assert all(known.get(f"{name} {i} {j}", STAMP) == {"x": j}
               for name in ("left", "right") for i in range(30) for j in range(10))


ADD_UNTIL_KILLED = """
for round in range(10**6):
    known = Remembered(path, "1")
    for number in range(2000):
        known.put(f"{number}", Stamp(1, 2, 3), {"round": round, "text": "x" * 200}, written_by_us=True)
    known.save()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 there")
def test_a_process_that_is_killed_while_it_writes_leaves_all_of_a_transaction_or_nothing(path):
    """The journal is looked for, so that some are killed in the middle of a transaction."""
    journal, interrupted = path.with_name(path.name + "-journal"), 0
    for attempt in range(8):
        running = process(path, "", ADD_UNTIL_KILLED)
        let(running)
        end = time.monotonic() + 30
        while not (journal.exists() and (attempt == 0 or path.stat().st_size > 10**5)) and time.monotonic() < end:
            pass
        time.sleep(0.001 * attempt)
        running.kill()
        running.wait()
        interrupted += journal.exists()
        known = Remembered(path, "1")
        assert known.get("first", STAMP) == {"x": 1}
        rounds = {(known.get(str(number), STAMP) or {}).get("round") for number in range(2000)}
        assert len(rounds) == 1
        known.put("after", STAMP, {"x": attempt})
        known.save()
        assert Remembered(path, "1").get("after", STAMP) == {"x": attempt}
    assert interrupted


@pytest.mark.skipif(os.name == "nt", reason="its limits are others")
def test_a_disk_that_is_full_costs_what_is_new_and_nothing_else(path):
    """The limit of a file's size stands for the disk's end."""
    running = process(path, "", """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
known = Remembered(path, "1")
for number in range(2000):
    known.put(f"{number}", Stamp(1, 2, 3), {"text": "x" * 200}, written_by_us=True)
known.save()
assert known.get("first", Stamp(1, 2, 3)) and known.get("7", Stamp(1, 2, 3)), "this process still knows both"
""")
    let(running)
    assert running.wait(60) == 0
    assert Remembered(path, "1").names() == ["first"]


def test_what_another_process_locks_for_too_long_is_asked_for_once_and_not_written(path, impatient):
    known = Remembered(path, "1")
    with closing(lock(path)):
        start = time.monotonic()
        assert not any(known.get("first", STAMP) for _ in range(1000))
        known.put("second", STAMP, {"x": 2})
        known.save()
        assert time.monotonic() - start < 5
    assert known.get("first", STAMP) == {"x": 1} and Remembered(path, "1").names() == ["first"]
    known.save()
    assert Remembered(path, "1").names() == ["first", "second"], "what could not be written is written later"


def test_what_only_reads_does_not_keep_others_from_writing(path, impatient):
    reading = Remembered(path, "1")
    assert reading.get("first", STAMP)
    writing = Remembered(path, "1")
    writing.put("second", STAMP, {"x": 2})
    writing.save()
    assert reading.get("second", STAMP) == {"x": 2}


def test_a_folder_that_cannot_be_written_to_is_read(path, monkeypatch):
    def refuse(*_args):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Database, "_run", refuse)
    known = Remembered(path, "1")
    known.put("second", STAMP, {"x": 2})
    known.save()
    assert known.get("first", STAMP) == {"x": 1} and known.get("second", STAMP) == {"x": 2}


def test_a_journal_of_a_damaged_file_is_not_played_back_into_the_new_one(path):
    path.write_bytes(b"damaged")
    path.with_name(path.name + "-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    known = Remembered(path, "1")
    assert known.get("first", STAMP) is None
    known.put("second", STAMP, {"x": 2})
    known.save()
    assert Remembered(path, "1").names() == ["second"] and list(path.parent.iterdir()) == [path]


def test_asking_makes_no_file(tmp_path):
    known = Remembered(tmp_path / "folder" / "known.sqlite", "1")
    assert known.get("a", STAMP) is None and known.names() == []
    known.keep(set())
    known.save()
    assert list(tmp_path.iterdir()) == []


def test_on_a_drive_without_locks_nothing_waits_for_one(path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(37, "No locks available")

    holding = lock(path)
    monkeypatch.setattr(database, "_lockable", {})
    monkeypatch.setattr(fcntl, "lockf", refuse)
    began = time.monotonic()
    known = Remembered(path, "1")
    assert known.get("first", STAMP) == {"x": 1}
    known.put("second", STAMP, {"x": 2})
    known.save()
    assert time.monotonic() - began < database.WAIT / 2
    holding.close()
    assert Remembered(path, "1").get("second", STAMP) == {"x": 2}
