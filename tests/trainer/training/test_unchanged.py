"""Twenty steps of a fixed run give the bits they gave before: what is moved or cleaned changes nothing of a LoRA.

before/twenty_steps.json was written by the commit before the folders. A digest holds for one kind of processor and one
version of torch; elsewhere the losses are held to a tolerance. A change that is meant to change what is
learned replaces the file, and says so.
"""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from wantune.tests.support import fixed, tools

EXPECTED = json.loads((Path(__file__).parents[2] / "before" / "twenty_steps.json").read_text(encoding="utf-8"))
TOLERANCE = 2e-3
"""Relative, of a loss: twenty steps at a high rate amplify the rounding of other kernels."""


def here() -> str:
    """What the bits of a sum depend on; not on ComfyUI: 0.3.75 and 0.33.0 gave the same."""
    processor = Path("/proc/cpuinfo")
    vendor = re.search(r"vendor_id\s*:\s*(\S+)", processor.read_text(encoding="utf-8")) if processor.is_file() else None
    version = torch.__version__.split("+")[0]
    return f"torch {version}, {torch.backends.cpu.get_cpu_capability()}, {vendor and vendor[1]}"


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_fixed_run_gives_the_bits_it_gave_before(comfy, tmp_path, monkeypatch, name):
    import folder_paths

    from wantune.nodes.train import train

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    model = tools.load_dit(fixed.dit(tmp_path))
    lora, losses, _ = train(model, fixed.dataset(tmp_path / name), "fixed", getattr(fixed, name)(), tools.Watch())
    assert losses == pytest.approx(EXPECTED["losses"][name], rel=TOLERANCE)
    digest = hashlib.sha256()
    for key in sorted(lora):
        digest.update(key.encode() + lora[key].contiguous().numpy().tobytes())
    known = EXPECTED["digests"].get(here())
    if known is not None and model.load_device.type == "cpu":
        assert digest.hexdigest() == known[name]
