"""kill -9 at any moment of scanning and filling: the next run completes, and its files are an undisturbed run's."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from wantune.tests.support import clips, tools
from wantune.tests.support.killer import Killer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process that has ComfyUI loaded")

KILLS = 12


@pytest.fixture(scope="module")
def killer(comfy):
    running = Killer(comfy.path)
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path):
    """Real pictures, one of them with a mask, and a clip in windows."""
    folder = tools.write_pictures(tmp_path / "data")
    for number in range(8):
        Image.effect_noise((200 + number, 160), 60).convert("RGB").save(folder / f"noise {number}.png")
    (folder / "masks").mkdir()
    Image.new("L", (200, 160), 200).save(folder / "masks" / "noise 0.png")
    clips.at_rate(folder / "clip.mp4", 24, 100)
    return folder


def tensors(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*.safetensors")}


def test_killed_at_random_moments_and_completed(killer, folder, tmp_path):
    start = time.perf_counter()
    assert killer.run("fill", folder, tmp_path / "undisturbed") == 0
    whole = time.perf_counter() - start
    expected, place, draw, killed = tensors(tmp_path / "undisturbed"), tmp_path / "killed", random.Random(0), 0
    for _ in range(KILLS):
        killed += killer.run("fill", folder, place, kill_after=draw.uniform(0.02, 0.4) * whole) == -signal.SIGKILL
        assert tensors(place).items() <= expected.items(), "what is there is whole"
    print(f"{killed} of {KILLS} runs were killed; an undisturbed one takes {whole:.1f} s")
    assert killed >= KILLS // 3
    assert killer.run("fill", folder, place) == 0
    assert tensors(place) == expected and not list(place.rglob("*.tmp"))
