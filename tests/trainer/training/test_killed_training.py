"""kill -9 at random moments of training: what goes on is bit for bit the run that was never killed."""

import json
import os
import random
import time

import pytest

from wantune.tests.support import clips, tools
from wantune.tests.support.killer import Killer
from wantune.tests.support.runs import assert_one_history

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process that has ComfyUI loaded")

MOST_KILLS = 40
EPOCHS = 3

SETTINGS = {
    "adamw, accumulation": ({"accumulation": 2}, {}),
    "prodigy, average, preserving": ({"name": "prodigy", "ema_decay": 0.9}, {"preserve": 0.5, "preserve_every": 2}),
}
"""Of the optimizer, and of the objective."""


@pytest.fixture(scope="module")
def killer(comfy):
    running = Killer(comfy.path)
    yield running
    running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real pictures of two shapes and two clips."""
    folder = tools.write_pictures(tmp_path_factory.mktemp("killed") / "data")
    for number in range(2):
        clips.at_rate(folder / f"clip {number}.mp4", 24, 12 + number)
    return folder


def kill_again_and_again(killer, command: tuple, draw: random.Random, seconds: float) -> int:
    """How often a run was killed before it was done; killed at random within the first half of so many seconds."""
    for killed in range(MOST_KILLS):
        if killer.run(*command, kill_after=draw.uniform(0.1, 0.5) * seconds) == 0:
            return killed
    assert killer.run(*command) == 0
    return MOST_KILLS


@pytest.mark.parametrize("settings", [
    pytest.param(SETTINGS["adamw, accumulation"], marks=pytest.mark.long, id="adamw, accumulation"),
    pytest.param(SETTINGS["prodigy, average, preserving"], id="prodigy, average, preserving")])
def test_killed_at_random_moments_and_continued(killer, folder, tmp_path, settings):
    command = ("train", folder, tmp_path / "warm", *settings, 1)
    assert killer.run(*command) == 0  # the cache is filled
    start = time.perf_counter()
    assert killer.run("train", folder, tmp_path / "undisturbed", *settings, EPOCHS) == 0
    whole = time.perf_counter() - start
    draw, killed, attempt, seconds = random.Random(0), 0, tmp_path, whole
    while killed < 2:  # on a machine that is less busy by now, it may be done before
        attempt = attempt / "killed"
        command = ("train", folder, attempt, *settings, EPOCHS)
        killed = kill_again_and_again(killer, command, draw, seconds)
        seconds /= 2
    print(f"killed {killed} times; undisturbed it takes {whole:.1f} s")
    expected = json.loads((tmp_path / "undisturbed" / "result.json").read_text())
    found = json.loads((attempt / "result.json").read_text())
    assert found["losses"] == expected["losses"] and found["lora"] == expected["lora"]
    assert not list(tmp_path.rglob("*.tmp"))
    for place in (attempt, tmp_path / "undisturbed"):
        (log,) = place.glob("wantune/*/log.jsonl")
        assert assert_one_history(log.parent) == expected["losses"] and not (log.parent / "training.json").exists()


def test_a_pair_killed_at_random_moments_and_continued(killer, folder, tmp_path):
    """Both experts by turns; what is killed in the turn of one has the other waiting."""
    from safetensors.torch import load_file, save_file

    low = tmp_path / "low.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(tools.WORLD / "dit.safetensors").items()}, low)
    assert killer.run("train_pair", folder, low, tmp_path / "warm", 1) == 0  # the cache is filled
    start = time.perf_counter()
    assert killer.run("train_pair", folder, low, tmp_path / "undisturbed", EPOCHS) == 0
    seconds, draw, killed, attempt = time.perf_counter() - start, random.Random(0), 0, tmp_path
    while killed < 2:
        attempt = attempt / "killed"
        killed = kill_again_and_again(killer, ("train_pair", folder, low, attempt, EPOCHS), draw, seconds)
        seconds /= 2
    print(f"killed {killed} times")
    expected, found = (json.loads((place / "result.json").read_text()) for place in (tmp_path / "undisturbed", attempt))
    assert found == expected and expected["high"]["losses"] != expected["low"]["losses"]
    for expert in ("high", "low"):
        (log,) = attempt.glob(f"wantune/killed_{expert}-*/log.jsonl")
        assert assert_one_history(log.parent) == expected[expert]["losses"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.long
def test_fifty_kills_of_caching_and_training(killer, folder, tmp_path):
    """Until 50 processes were killed: fill a cache, train with previews and tidying, and begin again elsewhere."""
    settings = SETTINGS["adamw, accumulation"]
    for name, command in (("fill", ("fill", folder, tmp_path / "cache")),
                          ("train", ("train", folder, tmp_path / "undisturbed", *settings, EPOCHS))):
        start = time.perf_counter()
        assert killer.run(*command) == 0
        print(f"{name} takes {time.perf_counter() - start:.1f} s")
    whole = time.perf_counter() - start
    expected = json.loads((tmp_path / "undisturbed" / "result.json").read_text())
    encoded = {path.name: path.read_bytes() for path in (tmp_path / "cache").rglob("*.safetensors")}
    draw, killed = random.Random(1), {"fill": 0, "train": 0}
    for attempt in map(str, range(50)):
        if sum(killed.values()) >= 50:
            break
        place = tmp_path / attempt
        killed["fill"] += kill_again_and_again(killer, ("fill", folder, place / "cache"), draw, whole / 4)
        killed["train"] += kill_again_and_again(killer, ("train", folder, place, *settings, EPOCHS), draw, whole)
        found = json.loads((place / "result.json").read_text())
        assert found == expected
        assert {path.name: path.read_bytes() for path in (place / "cache").rglob("*.safetensors")} == encoded
        (log,) = place.glob("wantune/*/log.jsonl")
        assert assert_one_history(log.parent) == expected["losses"] and not list(place.rglob("*.tmp"))
    print(f"killed: {killed}")
    assert sum(killed.values()) >= 50
