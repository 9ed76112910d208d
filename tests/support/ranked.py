"""Starts tests/support/rank_workers.py, and has it fork processes that work together."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Done:
    """What came of processes, in the order of their ranks."""

    codes: list[int]
    """Their exit codes, -9 of one that was killed."""
    seconds: list[float]
    """From the start to their ends."""
    said: list[str]
    results: list[dict | None]


class Ranked:
    """A running rank_workers.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("rank_workers.py")
        self._process = subprocess.Popen(
            [sys.executable, script], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert "ready\n" in iter(self._process.stdout.readline, ""), "it did not start"

    def run(self, name: str, count: int, place: Path, **arguments) -> Done:
        """Run a function of rank_workers.py in so many processes, each with the folder `place`."""
        for result in place.glob("result.*.json"):
            result.unlink()
        self._process.stdin.write(json.dumps([name, count, str(place), arguments]) + "\n")
        self._process.stdin.flush()
        codes, seconds = zip(*json.loads(self._process.stdout.readline()), strict=True)
        paths = [place / f"result.{rank}.json" for rank in range(count)]
        return Done(list(codes), list(seconds), [(place / f"said.{rank}").read_text() for rank in range(count)],
                    [json.loads(path.read_text()) if path.is_file() else None for path in paths])

    def close(self) -> None:
        """End rank_workers.py."""
        self._process.stdin.close()
        self._process.wait(60)
