"""The bench of several processes runs, and its parts fit together."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_bench_runs(comfy, tmp_path):
    out = tmp_path / "ranks.json"
    subprocess.run([sys.executable, ROOT / "bench" / "ranks.py", "--toy", "--counts", "1", "2", "--comfyui", comfy.path,
                    "--out", out], check=True)
    one, whole, shared = json.loads(out.read_text())["ranks"]
    assert [each["processes"] for each in (one, whole, shared)] == [1, 2, 2]
    assert one["bytes a process sends a step for gradients"] == 0 < whole["bytes a process sends a step for gradients"]
    assert shared["bytes of blocks on each device"] < 0.6 * whole["bytes of blocks on each device"]
    for each in (one, whole, shared):
        assert 0 < each["forward and backward, ms"] < each["step, ms"]
