"""A process that, for each command, forks a child that saves checkpoints in a loop, and kills it at a given moment.

Started by tests/trainer/runs/test_killed_saving.py. Each line on stdin is a command in JSON, [folder of runs, steps,
share]: kill the child after it has saved `steps` checkpoints, and `share` (0..1) of the time that one takes. It prints
[the last step that was saved completely, the child's exit code].
"""

import itertools
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef" * 4
NUMBERS = 30_000
"""Values of each tensor; so many that writing takes a while."""


def import_trainer() -> None:
    """Make the trainer importable as `wantune.trainer`, without ComfyUI."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests")]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack


def main() -> None:
    """Serve until stdin ends."""
    import_trainer()
    import torch

    from wantune.trainer.runs import state as run_state  # noqa: F401  so that the children have it

    torch.set_num_threads(1)  # threads do not survive a fork
    print("ready", flush=True)
    took = 0.02
    for line in sys.stdin:
        root, steps, share = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            save_on(Path(root), writer)
        os.close(writer)
        done = os.read(reader, 4)  # it has begun
        for _ in range(steps):
            start = time.perf_counter()
            done += os.read(reader, 4)
            took = (took + time.perf_counter() - start) / 2
        time.sleep(share * took)
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        while block := os.read(reader, 4):
            done += block
        os.close(reader)
        print(json.dumps([int.from_bytes(done[-4:], "big"), status]), flush=True)


def save_on(root: Path, writer: int) -> None:
    """Save as a run does, without end: go on from the newest checkpoint, save, delete older ones, log.

    Args:
        writer: file descriptor to which each saved step is written, in 4 bytes.
    """
    import torch

    from wantune.tests.support.runs import begun
    from wantune.trainer.runs.events import Saved

    folder = begun(root, "lora", KEY, {"seed": 0})
    found, _ = folder.newest()
    start = found.step if found else 0
    os.write(writer, start.to_bytes(4, "big"))
    folder.logged()
    for step in itertools.count(start + 1):
        tensor = torch.full((NUMBERS,), float(step))
        folder.save(step, {"a": tensor, "b": -tensor}, {"step": step, "optimizer": [tensor, {0: tensor + 1}]})
        os.write(writer, step.to_bytes(4, "big"))
        folder.tidy(step, 3, 0, lambda _step: False)
        folder.log(Saved(step, 0.0))


if __name__ == "__main__":
    main()
