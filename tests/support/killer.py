"""Runs tests/support/killable.py and kills what it forks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


class Killer:
    """A process that forks workers, and an end for them."""

    def __init__(self, comfyui: Path) -> None:
        script = Path(__file__).with_name("killable.py")
        self._process = subprocess.Popen([sys.executable, script, comfyui], text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert "ready\n" in iter(self._process.stdout.readline, ""), "it did not start"

    def run(self, *command, kill_after: float | None = None) -> int:
        """Do it, and kill -9 the worker after so many seconds; returns its exit status."""
        self._process.stdin.write(json.dumps(command, default=str) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            threading.Timer(kill_after, self._kill, [child]).start()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """No more workers."""
        self._process.stdin.close()
        self._process.wait(60)

    def _kill(self, child: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
