"""An output folder on a drive that cannot lock files: all works as elsewhere, as fast, and it is said once."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wantune.demo import graph as graphs
from wantune.demo.server import Server
from wantune.tests.conftest import ROOT
from wantune.tests.support import tools
from wantune.trainer.base import database

SOURCE = ROOT / "tests" / "support" / "without_locks.c"


@pytest.fixture
def without_locks(tmp_path, monkeypatch):
    """Programs that are started find no file that can be locked."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or not compiler:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path / "without_locks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


def test_all_goes_on_without_locks_and_that_is_said_once(comfy, without_locks, tmp_path):
    class_types = ("UNETLoader", "VAELoader", graphs.TEXT_ENCODER, "WanTune_LoadDataset", "WanTune_CacheLatents",
                   "WanTune_TrainWanLoRA")
    options = argparse.Namespace(folder=tools.write_pictures(tmp_path / "pictures"), trigger="zwx", **dict.fromkeys(
        ("unet", "vae", "clip", "prompt", "epochs", "seed")))
    adapted = graphs.adapt(graphs.load(ROOT), options, ROOT)
    graph = {number: entry for number, entry in adapted.items() if entry["class_type"] in class_types}
    inputs = {entry["class_type"]: entry["inputs"] for entry in graph.values()}
    inputs["WanTune_TrainWanLoRA"].update(epochs=1, max_steps=2)
    for name in ("previews", "objective"):
        inputs["WanTune_TrainWanLoRA"].pop(name, None)
    with Server(Path(sys.executable), comfy, ROOT, tmp_path / "server") as server:
        server.run(graph)
        inputs["WanTune_LoadDataset"].update(trigger_word="another")
        began = time.monotonic()
        server.run(graph)
        assert time.monotonic() - began < 2 * database.WAIT, "SQLite waits that long for each lock that it does not get"
        assert server.log().count("cannot be locked (No locks available)") == 1
        assert (server.folder("output") / "wantune" / "cache" / "index.sqlite").stat().st_size > 0
        assert server.get("/wantune/runs")["runs"]
