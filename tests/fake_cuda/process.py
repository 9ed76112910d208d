"""The process that measures, and a question to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .measure import ROOT, Case


class Measuring:
    """Started when first asked; each case is measured once.

    Args:
        comfyui: the folder of ComfyUI.
        log: gets what the process writes to stderr.
    """

    def __init__(self, comfyui: Path, log: Path) -> None:
        self._comfyui, self._log = comfyui, log
        self._process: subprocess.Popen | None = None
        self._known: dict[Case, dict] = {}

    def __call__(self, case: Case) -> dict:
        """What `measure.measure` gives for the case, or {"error": kind, "text": message, "trace": where}."""
        if case not in self._known:
            self._known[case] = self._ask(case)
        return self._known[case]

    def _ask(self, case: Case) -> dict:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fake_cuda.measure", "--serve"], cwd=ROOT, text=True,
                env={**os.environ, "COMFYUI_PATH": str(self._comfyui)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._log.open("w"))
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The measuring process ended:\n{self._log.read_text()[-3000:]}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
