"""Ctrl-C ends ComfyUI at once, whatever our threads are doing."""

import concurrent.futures
import json
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from wantune.demo.server import Server
from wantune.tests.conftest import ROOT
from wantune.tests.support.folders import draw

SLOW_DRIVE = """
import pathlib
import time

read = pathlib.Path.read_bytes

def read_slowly(path):
    if path.suffix == ".png":
        print("reading", path.name, flush=True)
        time.sleep(30)
    return read(path)

pathlib.Path.read_bytes = read_slowly
NODE_CLASS_MAPPINGS = {}
"""

MOST = 1
"""Seconds that our threads may add to what an idle ComfyUI needs from Ctrl-C to the end of its process."""


def until(is_true) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def interruptible():
    """Processes that are begun end by Ctrl-C, also where the tests were begun in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def seconds_to_end(server: Server) -> float:
    """From Ctrl-C to the end of the process."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"Still there after 60 s; it had written:\n{server.log()}") from None
    return time.monotonic() - began


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows gets no SIGINT from outside")
def test_ctrl_c_waits_neither_for_the_page_s_scan_nor_for_that_of_a_node(comfy, tmp_path, interruptible):
    pack = tmp_path / "packs" / "slow_drive"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(SLOW_DRIVE)
    with Server(Path(sys.executable), comfy, ROOT, tmp_path / "idle", (pack,)) as idle, \
            Server(Path(sys.executable), comfy, ROOT, tmp_path / "server", (pack,)) as server, \
            concurrent.futures.ThreadPoolExecutor() as pages:
        for folder in ("page", "node"):
            for number in range(20):
                draw(server.folder("input") / folder / f"{folder}_{number}.png", number)
        config = urllib.parse.quote(json.dumps({"folder": "page"}))
        pages.submit(server.get, f"/wantune/dataset?config={config}")
        server.post({"1": {"class_type": "WanTune_LoadDataset", "inputs": {
            "folder": "node", "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1", "num_repeats": 1,
            "validation_items": 0}}})
        until(lambda: "reading page_0.png" in server.log() and "reading node_0.png" in server.log())
        # at the same moment, so that whatever else the machine does slows both down
        without, with_scans = pages.map(seconds_to_end, (idle, server))
        assert with_scans < without + MOST
        said = server.log().partition("got prompt")[2].replace("[INFO] ", "")  # newer versions begin each line so
        assert said.split("\n")[-3:] == ["", "Stopped server", ""], "no complaint"
