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
    """Starts killable.py, has it fork workers, and kills them."""

    def __init__(self, comfyui: Path) -> None:
        script = Path(__file__).with_name("killable.py")
        self._process = subprocess.Popen([sys.executable, script, comfyui], text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert "ready\n" in iter(self._process.stdout.readline, ""), "it did not start"

    def run(self, *command, kill_after: float | None = None) -> int:
        """Run a function of killable.py in a worker.

        Args:
            command: the function's name and arguments.
            kill_after: seconds after which the worker gets SIGKILL; None lets it end by itself.

        Returns:
            The worker's exit code, -9 if it was killed.
        """
        self._process.stdin.write(json.dumps(command, default=str) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            threading.Timer(kill_after, self._kill, [child]).start()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End killable.py."""
        self._process.stdin.close()
        self._process.wait(60)

    def _kill(self, child: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
