"""A run that another process trains is locked, for as long as that process lives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wantune.trainer.base.errors import UserError
from wantune.trainer.runs.folder import delete_run
from wantune.trainer.runs.lock import RunLock, holder

HOLD = """
import sys, types
pack = types.ModuleType("wantune")
pack.__path__ = [sys.argv[1]]
sys.modules["wantune"] = pack
from pathlib import Path
from wantune.trainer.runs.lock import RunLock
lock = RunLock(Path(sys.argv[2]))
assert lock.acquire() is None
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that trains the run in tmp_path / "run"."""
    (tmp_path / "run").mkdir()
    pack = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", HOLD, pack, tmp_path / "run"], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_process_that_trains_a_run_is_named(other, tmp_path):
    found = holder(tmp_path / "run")
    assert found.process == other.pid and f"process {other.pid} on {found.host} since " in str(found)
    assert RunLock(tmp_path / "run").acquire() == found == holder(tmp_path / "run"), "to ask changes nothing"
    with pytest.raises(UserError, match=f"is being trained by process {other.pid} on .*; stop it first"):
        delete_run(tmp_path / "run")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_process_holds_nothing(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / "training.json").exists() and holder(tmp_path / "run") is None
    lock = RunLock(tmp_path / "run")
    assert lock.acquire() is None and holder(tmp_path / "run").process == os.getpid()
    lock.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], ["training.lock"])


def test_a_lock_that_is_not_held_is_not_given_away(other, tmp_path):
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    lock.release()
    assert holder(tmp_path / "run").process == other.pid
