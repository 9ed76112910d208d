"""A thousand items: memory stays flat, an unchanged file is not read again, a full cache encodes nothing.

bench/data.py measures the same for ten thousand, and the seconds, which say nothing on a machine of others.
"""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from wantune.trainer.encoded import cache, store
from wantune.trainer.encoded.batches import BucketSampler
from wantune.trainer.encoded.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads its memory from /proc")

ROOT = Path(__file__).resolve().parents[2]
ITEMS, FEW = 1000, 10
MAX_GROWTH = 200
"""MiB."""
TINY, BYTES = ((32, 32), (48, 32), (32, 48)), 300_000
"""Of pictures that are made fast, and would yet be seen in memory if all were kept."""
SHAPES = (16, 1, 64, 64), (8, 64)
"""Of cached items: the latents alone are more than MAX_GROWTH."""

PROGRAM = """
import json, sys, types
root = sys.argv[1]
sys.path.insert(0, root + "/bench")
sys.modules["wantune"] = types.ModuleType("wantune")
sys.modules["wantune"].__path__ = [root]
import data
from pathlib import Path
few, many = (Path(argument) for argument in sys.argv[2:4])
"""
"""What bench/data.py's functions need in a process of their own; ComfyUI is not among it."""

SCAN = PROGRAM + """
opened = []
sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
figures = {}
for name, folder in (("few", few), ("many", many), ("again", many)):
    opened.clear()
    figures[name] = data.scan(folder, resolution=32)
    figures[name]["opened"] = sum(path.endswith((".jpg", ".png")) for path in opened)
    figures[name]["captions"] = sum(path.endswith(".txt") for path in opened)
print(json.dumps(figures))
"""

SAMPLING = PROGRAM + """
print(json.dumps({"few": data.sampling(few, 10, 2), "many": data.sampling(many, 1000, 2)}))
"""


@pytest.fixture(scope="module")
def data():
    """bench/data.py as Python sees it when it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        import data

        patch.setattr(data, "SETTLED", 0)
        yield data


@pytest.fixture(scope="module")
def scans(data, tmp_path_factory) -> dict:
    """A scan of a few pictures, of many, and of the same many again, in one process."""
    folder = tmp_path_factory.mktemp("pictures")
    few, many = (data.make_pictures(folder / str(count), count, TINY) for count in (FEW, ITEMS))
    for path in (*few.glob("*.jpg"), *many.glob("*.jpg")):
        os.truncate(path, BYTES)  # zeros after a picture's end are no part of it
    time.sleep(2.1)  # younger files are not remembered
    return in_process(SCAN, few, many)


@pytest.fixture(scope="module")
def cached(data, tmp_path_factory) -> Path:
    """A cache that has everything of a thousand items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)  # the disk may take its time
        return data.make_cache(tmp_path_factory.mktemp("cache"), ITEMS, *SHAPES)


def in_process(program: str, few: Path, many: Path) -> dict:
    found = subprocess.run([sys.executable, "-c", program, ROOT, few, many], check=True, capture_output=True,
                           text=True)
    return json.loads(found.stdout)


def growth(figures: dict) -> float:
    return figures["many"]["peak over start, MiB"] - figures["few"]["peak over start, MiB"]


def test_the_memory_of_a_scan_does_not_grow_with_the_files(scans):
    assert scans["many"]["files"] == ITEMS
    assert growth(scans) <= MAX_GROWTH


def test_a_second_scan_reads_no_picture(scans):
    assert [scans[name]["opened"] for name in ("few", "many", "again")] == [FEW, ITEMS, 0]
    assert scans["again"]["captions"] == scans["again"]["files"] == ITEMS


def test_the_memory_of_sampling_does_not_grow_with_the_items(data, cached, tmp_path):
    few = data.make_cache(tmp_path, FEW, *SHAPES)
    assert growth(in_process(SAMPLING, few, cached)) <= MAX_GROWTH


def test_growing_memory_is_seen(data):
    """So that the two tests above can fail."""
    _, mib = data.peak_of(lambda: len(b"x" * (MAX_GROWTH << 20)))
    assert mib > 0.9 * MAX_GROWTH


def test_a_full_cache_opens_without_encoding_or_reading_a_tensor(data, cached, monkeypatch):
    read, real = [], store._read
    monkeypatch.setattr(store, "_read", lambda path: read.append(path) or real(path))
    assert len(data.opened(cached, ITEMS).samples) == ITEMS
    assert not read
    (cached / "index.sqlite").rename(cached / "index.away")  # what is not known to be whole is read once
    assert len(data.opened(cached, ITEMS).samples) == ITEMS
    assert len(read) == 2 * ITEMS
    data.opened(cached, ITEMS)
    assert len(read) == 2 * ITEMS


def test_the_sampler_keeps_no_more_after_many_epochs(data):
    located = cache.locate(data.pretended(ITEMS).samples, Store(Path()), "", {"text": ""})
    clips = [replace(clip, repeats=10) for clip in located]
    sampler = BucketSampler(clips, 50, seed=0)

    def kept_after(epochs: int) -> int:
        for _ in range(epochs * sampler.steps_per_epoch):
            sampler.next()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_few, after_many = kept_after(6), kept_after(12)
    finally:
        tracemalloc.stop()
    assert after_many - after_few < 100_000


@pytest.mark.usefixtures("comfy")
def test_filling_is_held_against_the_time_inside_the_encoders(data, tmp_path):
    figures = data.MEASUREMENTS["fill, toy"](tmp_path, 0)
    assert figures["files"] == 2 and figures["fill / inside encoders"] >= 1
    inside = figures["inside the VAE, s"] + figures["inside the text encoder, s"]
    assert 0 < inside < figures["fill, s"]
    assert len(list(tmp_path.glob(".cache-0/latents/*.safetensors"))) == 2


def test_a_played_gpu_gives_what_can_be_written(data, tmp_path):
    folder = data.make_pictures(tmp_path, 3, ((512, 512),), "jpg")
    figures = data.MEASUREMENTS["fill, GPU played"](folder, 0)
    assert figures["files"] == 3 and figures["inside the VAE, s"] >= 3 * data.GPU_ENCODES
