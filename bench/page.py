"""What looking costs training: the page closed, open, and 200 requests at once.

    python bench/page.py [--comfyui PATH] [--out FILE] [--threads N] [--toy]

Through a real server, and for the open page a real Chromium (`python3 run.py browser` installs what drives it). The
same run is trained again and again with other seeds, in turn with the page closed, with bursts of requests, with the
page open, and with the page open without our scripts; every other turn in the opposite order, since machines get
faster and slower in minutes. Figures are medians of the ratios within a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import host

STEPS, TOY_STEPS = 250, 8
TURNS = 6
REQUESTS = 200
PUBLISHED = 5000
OURS_OUT = "page open without our scripts"


def main() -> None:
    """Measure, print and write."""
    options = host.parser("page", __doc__.splitlines()[0]).parse_args()
    machine = host.start(options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures = {"page": {**publishing(), **through_a_server(options)}}
    print(*(f"  {key}: {value}" for key, value in figures["page"].items()), sep="\n", flush=True)
    host.write(options, "page", machine, figures)


def publishing() -> dict[str, float]:
    """What showing a step costs in the thread that trains, with nobody looking."""
    from wantune.nodes.live import Live
    from wantune.trainer.events import Started, StepDone

    live = Live(None)
    live.publish(Started(0, PUBLISHED, 100, 40, 1000))
    start = time.perf_counter()
    for step in range(1, PUBLISHED + 1):
        live.publish(StepDone(step, PUBLISHED, 1, 0.5, 1e-4, 1.0, (0.5,), (0.5,), False, 0.1, 10.0))
    return {"showing a step, microseconds": round(1e6 * (time.perf_counter() - start) / PUBLISHED, 1)}


def through_a_server(options: argparse.Namespace) -> dict:
    """Ratios of the time of whole runs."""
    from wantune.tests import tools
    from wantune.tests.host import browser, comfyui, page
    from wantune.tests.host.server import Server

    found = comfyui.find(host.ROOT, options.comfyui, os.environ) or comfyui.unpacked(host.ROOT)
    steps, turns = (TOY_STEPS, 1) if options.toy else (STEPS, TURNS)
    with tempfile.TemporaryDirectory() as folder:
        graph = _graph(tools.write_pictures(Path(folder) / "pictures"), steps)
        pack = page.write_pack(host.ROOT, graph, Path(folder))
        with Server(Path(sys.executable), found, host.ROOT, Path(folder) / "server", (pack,)) as server:
            workflow = json.loads((pack / "example_workflows" / f"{page.WORKFLOW}.json").read_text())
            runs = _Runs(server, graph, workflow)
            runs.train()  # loads the models, fills the cache
            ways = {"closed": None, f"{REQUESTS} requests at once": runs.burst}
            try:
                chromium = browser.find(host.ROOT, os.environ)
                ways |= {"page open": _opened(chromium, server, False), OURS_OUT: _opened(chromium, server, True)}
            except browser.Missing as missing:
                print(f"  no browser: {missing}")
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(turns):
                for way in list(ways)[::-1 if turn % 2 else 1]:
                    seconds[way].append(runs.train(ways[way]))
    figures: dict = {}
    for way, other in ((f"{REQUESTS} requests at once", "closed"), ("page open", OURS_OUT), (OURS_OUT, "closed")):
        if way in seconds:
            each = [round(a / b, 4) for a, b in zip(seconds[way], seconds[other], strict=True)]
            figures[f"{way} / {other}"] = {"median": round(statistics.median(each), 4), "each turn": each}
    return {**figures, "steps": steps, "a step with the page closed, ms": round(
        1000 * statistics.median(seconds["closed"]) / steps, 2), "seconds for a burst": runs.burst_seconds}


class _Runs:
    """Trainings of one graph, each with a seed of its own."""

    def __init__(self, server, graph: dict, workflow: dict) -> None:
        self.server, self.graph, self.workflow, self.seed = server, graph, workflow, 0
        self.burst_seconds: list[float] = []
        self._train = next(entry["inputs"] for entry in graph.values() if entry["class_type"] == "WanTune_TrainWanLoRA")
        # what training does not need is not run
        self._wanted = {number for number, entry in graph.items() if entry["class_type"] == "WanTune_TrainWanLoRA"}
        while more := {each[0] for number in self._wanted for each in graph[number]["inputs"].values()
                       if isinstance(each, list)} - self._wanted:
            self._wanted |= more

    def train(self, beside=None) -> float:
        """Seconds of the run, as its log has them; `beside(run)` is a context for its time."""
        self.seed += 1
        self._train.update(seed=self.seed, run_name=f"bench{self.seed}")
        graph = {number: self.graph[number] for number in self._wanted}
        with beside(self._train["run_name"]) if beside else _nothing():
            self.server.run(graph, workflow=self.workflow)
        (folder,) = self.server.folder("output").glob(f"wantune/bench{self.seed}-*")
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        return last["seconds"]

    @contextmanager
    def burst(self, name: str):
        """200 requests at once, as soon as the run has begun."""
        with ThreadPoolExecutor(REQUESTS + 1) as threads:
            begun = threads.submit(self._ask_all, name, threads)
            yield
            self.burst_seconds.append(round(begun.result(), 2))

    def _ask_all(self, name: str, threads: ThreadPoolExecutor) -> float:
        folders = self.server.folder("output") / "wantune"
        while not (found := list(folders.glob(f"{name}-*/log.jsonl"))):
            time.sleep(0.01)
        run = urllib.parse.quote(found[0].parent.name)
        paths = [f"/wantune/runs/{run}", "/wantune/runs", "/wantune/runs/nothing", f"/wantune/node?run_name={name}"]
        start = time.perf_counter()
        list(threads.map(self._ask, [paths[index % len(paths)] for index in range(REQUESTS)]))
        return time.perf_counter() - start

    def _ask(self, path: str) -> None:
        try:
            self.server.get(path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise


def _opened(chromium, server, is_blocked: bool):
    """A page with the graph, open as long as a run."""
    @contextmanager
    def beside(_name: str):
        given = {"url": server.url, "block": f"/extensions/{host.ROOT.name}/" if is_blocked else ""}
        command = [chromium.node, str(host.ROOT / "bench" / "open_page.mjs"), json.dumps(given)]
        found = {"WANTUNE_CHROMIUM": chromium.chromium, "WANTUNE_PLAYWRIGHT": str(chromium.playwright)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, **found})
        try:
            if process.stdout.readline().strip() != "open":
                raise RuntimeError("The page did not open; see above.")
            yield
        finally:
            process.stdin.close()
            process.wait(60)

    return beside


@contextmanager
def _nothing():
    yield


def _graph(pictures: Path, steps: int) -> dict:
    from wantune.tests.host import graph as graphs

    names = ("unet", "vae", "clip", "prompt", "epochs", "seed")
    options = argparse.Namespace(folder=pictures, trigger="zwx", **dict.fromkeys(names))
    graph = graphs.adapt(graphs.load(host.ROOT), options, host.ROOT)
    for entry in graph.values():
        if entry["class_type"] == "WanTune_TrainWanLoRA":
            entry["inputs"].update(epochs=steps, max_steps=steps, batch_size=1)
            del entry["inputs"]["previews"]
    return graph


if __name__ == "__main__":
    main()
