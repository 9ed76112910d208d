"""kill -9 at any moment of saving: what is found afterwards is the newest one that was saved, as a whole."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
import torch

from wantune.tests.support import killable_saving
from wantune.tests.support.killable_saving import KEY, NUMBERS
from wantune.tests.support.runs import begun

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process that has torch loaded")

KILLS = 30


@pytest.fixture(scope="module")
def saver():
    """tests/support/killable_saving.py."""
    script = killable_saving.__file__
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], text=True, **pipes) as process:
        assert "ready\n" in iter(process.stdout.readline, ""), "it did not start"
        yield process
        process.stdin.close()


def is_whole(found) -> bool:
    """All of it is of one step."""
    full = torch.full((NUMBERS,), float(found.step))
    tensors = [(found.adapter["a"], full), (found.adapter["b"], -full), (found.state["optimizer"][0], full),
               (found.state["optimizer"][1][0], full + 1)]
    return found.state["step"] == found.step and all(torch.equal(one, other) for one, other in tensors)


def test_killed_at_random_moments_of_saving(saver, tmp_path):
    draw, halves, steps = random.Random(0), 0, []
    for _ in range(KILLS):
        saver.stdin.write(json.dumps([str(tmp_path), draw.randrange(3), draw.random()]) + "\n")
        saver.stdin.flush()
        done, status = json.loads(saver.stdout.readline())
        assert status == -signal.SIGKILL, "it ended by itself"
        (place,) = tmp_path.iterdir()
        halves += bool(list(place.glob("step_*.tmp")))
        folder = begun(tmp_path, "lora", KEY, {})
        assert not list(place.glob("step_*.tmp"))
        found, faults = folder.newest()
        if found is None:
            assert done == 0
        else:
            # the last one that it said was saved, or the one after, of which it could not tell us any more
            assert found.step in (done, done + 1) and is_whole(found) and not faults
        logged = [line["step"] for line in folder.logged()]
        assert logged == sorted(set(logged)) and max(logged, default=0) <= (found.step if found else 0)
        steps.append(done)
    print(f"{halves} of {KILLS} kills left half a checkpoint; {steps[-1]} were saved")
    assert steps == sorted(steps) and steps[-1] >= KILLS // 2 and halves >= KILLS // 6
