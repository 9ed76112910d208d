"""Processes that torchrun or `accelerate launch` starts together give the run of one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wantune.tests.command.conftest import place_for_runs, the_run
from wantune.tests.support.runs import assert_one_history
from wantune.trainer.runs import history
from wantune.trainer.runs.folder import RunFolder

pytestmark = [pytest.mark.usefixtures("comfy"),
              pytest.mark.skipif(sys.platform == "win32", reason="processes are joined over gloo and fork")]

ROOT = Path(__file__).resolve().parents[2]
CLOSE = 1e-5
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
# what a machine with several cards is asked for; accelerate starts several on a CPU by mpirun only
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"]
TRAIN = "train", "settings.toml", "--batch-size", "2", "--prompts="


def launch(launcher: list[str], count: int, *arguments: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *launcher, str(count), ROOT, *TRAIN, *arguments], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})


def finished(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def assert_same_run(run: Path, other: Path, step: int) -> None:
    assert run.name == other.name, "the same key"
    one, expected = (RunFolder(each).load(step).adapter for each in (run, other))
    assert one.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (one[name] - tensor).abs().max() < CLOSE, name


@pytest.fixture
def places(tmp_path, call, monkeypatch):
    """Two folders with the same pictures and settings; in the second one a single process has trained."""
    alone = place_for_runs(tmp_path / "alone")
    monkeypatch.chdir(alone)
    found = call(*TRAIN)
    assert found.code == 0, found.err
    return place_for_runs(tmp_path / "several"), the_run(alone)


@pytest.mark.parametrize("launcher, arguments", [
    (TORCHRUN, []),
    pytest.param(TORCHRUN, ["--shard"], marks=pytest.mark.long),
    pytest.param(ACCELERATE, [], marks=pytest.mark.long),
], ids=["torchrun", "torchrun, shared out", "accelerate"])
def test_two_processes_encode_and_train_the_run_of_one(places, launcher, arguments):
    folder, alone = places
    process = launch(launcher, 2, *arguments, folder=folder)
    out, err = finished(process)
    assert process.returncode == 0, err
    run = the_run(folder)
    assert out.splitlines()[-1:] == [str(run)] and out.count(str(run)) == 1, "one of them says where it is"
    assert err.count("done after step 4") == 1 and "Traceback" not in err
    assert_same_run(run, alone, 4)
    assert_one_history(run)
    assert history.summary(run).state == "done"


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started, by their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            entries = dict(each.split("=", 1) for each in (folder / "environ").read_text().split("\0") if "=" in each)
        except (OSError, ValueError):
            continue
        if int(stat[1]) == launcher and "RANK" in entries:
            found[int(entries["RANK"])] = int(folder.name)
    return [pid for _, pid in sorted(found.items())]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_ends_all_and_the_same_line_goes_on(places, rank):
    folder, alone = places
    process = launch(TORCHRUN, 2, "--max-steps", "100000", folder=folder)
    try:
        end = time.monotonic() + 120
        while not list(folder.glob("output/wantune/digits-*/step_*")) and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
    finally:
        _, err = finished(process)
    assert process.returncode == 1, err
    if rank:
        assert "Another of the 2 processes is gone" in err
    step = RunFolder(the_run(folder)).steps()[-1]
    process = launch(TORCHRUN, 2, "--max-steps", str(step + 2), folder=folder)
    _, err = finished(process)
    assert process.returncode == 0, err
    run = the_run(folder)
    assert run.name == alone.name and RunFolder(run).steps()[-1] == step + 2
    assert_one_history(run)
