"""What looking costs training: the page closed, open, and 200 requests at once.

    python bench/page.py [--comfyui PATH] [--out FILE] [--threads N] [--toy]

Through a real server, and for the open page a real Chromium (`python3 run.py browser` installs what drives it).
A machine's speed changes within minutes, so the steps of one run are compared with each other: those during a burst of
requests with the others; and those with the page open, with a page without our scripts open, and with both suspended,
two seconds each in turn.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host

STEPS, TOY_STEPS = 250, 8
TURNS = 6
"""Runs of each comparison."""
REQUESTS = 200
PUBLISHED = 5000
"""Steps shown by `publishing`."""
WITHOUT_END = 100_000
"""Steps of a run that is stopped long before its end."""
CYCLES = 10
"""Times that a run goes through all states of the page."""
SECONDS_AWAKE = 2.0
SECONDS_TO_SETTLE = 0.5
BURST = f"{REQUESTS} requests at once"
OPEN, OURS_OUT, CLOSED = "page open", "page open without our scripts", "page closed"


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
    from wantune.nodes.page.live import Live
    from wantune.trainer.runs.events import Started, StepDone

    live = Live(None)
    live.publish(Started(0, PUBLISHED, 100, 40, 1000))
    start = time.perf_counter()
    for step in range(1, PUBLISHED + 1):
        live.publish(StepDone(step, PUBLISHED, 1, 0.5, 1e-4, 1.0, (0.5,), (0.5,), False, 0.1, 10.0))
    return {"showing a step, microseconds": round(1e6 * (time.perf_counter() - start) / PUBLISHED, 1)}


def through_a_server(options: argparse.Namespace) -> dict:
    """Ratios of step times, measured with a server and, where there is one, a browser."""
    from wantune.demo import browser, comfyui, page
    from wantune.demo.server import Server
    from wantune.tests.support import tools

    found = comfyui.find(host.ROOT, options.comfyui, os.environ) or comfyui.unpacked(host.ROOT)
    steps, turns = (TOY_STEPS, 1) if options.toy else (STEPS, TURNS)
    with tempfile.TemporaryDirectory() as folder:
        graph = _graph(tools.write_pictures(Path(folder) / "pictures"))
        pack = page.write_pack(host.ROOT, graph, Path(folder))
        with Server(Path(sys.executable), found, host.ROOT, Path(folder) / "server", (pack,)) as server:
            workflow = json.loads((pack / "example_workflows" / f"{page.WORKFLOW}.json").read_text(encoding="utf-8"))
            runs = _Runs(server, graph, workflow)
            runs.train(steps)  # loads the models, fills the cache
            figures = _burst(runs, steps, turns)
            try:
                chromium = browser.find(host.ROOT, os.environ)
            except browser.Missing as missing:
                print(f"  no browser: {missing}")
                return figures
            with _pages(chromium, server) as wake:
                return {**figures, **_opened(runs, wake, turns, 1 if options.toy else CYCLES)}


def _burst(runs: "_Runs", steps: int, turns: int) -> dict:
    """What 200 requests at once in the middle of a run cost it: its time divided by that without the burst."""
    def ask(run: _Run) -> tuple[int, int, float]:
        while len(run.step_seconds()) < steps // 2:
            time.sleep(0.05)
        first, start = len(run.step_seconds()), time.perf_counter()
        runs.ask(run.folder.name)
        return first, len(run.step_seconds()) + 1, time.perf_counter() - start

    ratios, answered = [], []
    for _ in range(turns):
        each, (first, end, seconds) = runs.train(steps, ask)
        others = statistics.median(each[1:first] + each[end:])  # the first step warms up
        lost = sum(each[first:end]) - others * len(each[first:end])
        ratios.append(sum(each) / (sum(each) - lost))
        answered.append(round(seconds, 2))
    return {"steps of a run with a burst": steps, f"{BURST} / the same run without": _summary(ratios),
            "seconds for a burst": answered}


def _opened(runs: "_Runs", wake: Callable[..., None], turns: int, cycles: int) -> dict:
    """What the open page costs a step: ratios of step times between the states of the page."""
    def alternate(run: _Run) -> list[tuple[str, int, int]]:
        windows = []
        for state in states * cycles:
            wake(state)
            time.sleep(SECONDS_TO_SETTLE)
            first = len(run.step_seconds()) + 1  # the step in progress began before
            time.sleep(SECONDS_AWAKE)
            windows.append((state, first, len(run.step_seconds())))
        wake(OPEN, OURS_OUT)
        runs.stop(run.folder.name)
        return windows

    states = [OPEN, OURS_OUT, CLOSED]
    pairs = ((OPEN, OURS_OUT), (OURS_OUT, CLOSED))
    ratios: dict[tuple, list[float]] = {pair: [] for pair in pairs}
    closed = []
    for _ in range(turns):
        each, windows = runs.train(WITHOUT_END, alternate)
        means = [(state, statistics.mean(each[first:end])) for state, first, end in windows]
        cycle = [dict(means[start:start + len(states)]) for start in range(0, len(means), len(states))]
        for pair in pairs:
            ratios[pair].append(statistics.median(mean[pair[0]] / mean[pair[1]] for mean in cycle))
        closed += [mean[CLOSED] for mean in cycle]
        states.reverse()
    return {**{f"{state} / {other}": _summary(ratios[state, other]) for state, other in pairs},
            "a step with the page closed, ms": round(1000 * statistics.median(closed), 2)}


def _summary(ratios: list[float]) -> dict:
    return {"median": round(statistics.median(ratios), 4), "each turn": [round(ratio, 4) for ratio in ratios]}


@dataclass(frozen=True)
class _Run:
    folder: Path

    def step_seconds(self) -> list[float]:
        """The seconds of each step done so far."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return [json.loads(line)["seconds"] for line in lines if '"StepDone"' in line]


class _Runs:
    """Trainings of one graph, each with a seed of its own."""

    def __init__(self, server, graph: dict, workflow: dict) -> None:
        self.server, self.workflow, self.seed = server, workflow, 0
        self._train = next(entry["inputs"] for entry in graph.values() if entry["class_type"] == "WanTune_TrainWanLoRA")
        # only the nodes that training depends on are run
        wanted = {number for number, entry in graph.items() if entry["class_type"] == "WanTune_TrainWanLoRA"}
        while more := {each[0] for number in wanted for each in graph[number]["inputs"].values()
                       if isinstance(each, list)} - wanted:
            wanted |= more
        self.graph = {number: graph[number] for number in wanted}

    def train(self, steps: int, beside=lambda run: None) -> tuple[list[float], Any]:
        """The seconds of each step, and the result of `beside`, called in its own thread once the run has begun."""
        self.seed += 1
        self._train.update(seed=self.seed, run_name=f"bench{self.seed}", epochs=steps, max_steps=steps)
        with ThreadPoolExecutor(1) as threads:
            watched = threads.submit(lambda: beside(self._begun()))
            self.server.run(self.graph, workflow=self.workflow)
            return self._begun().step_seconds(), watched.result()

    def _begun(self) -> _Run:
        folders = self.server.folder("output") / "wantune"
        while not (found := list(folders.glob(f"bench{self.seed}-*/log.jsonl"))):
            time.sleep(0.05)
        return _Run(found[0].parent)

    def stop(self, name: str) -> None:
        """As Stop & use does."""
        self.server.ask("/wantune/stop", {"run": name})

    def ask(self, name: str) -> None:
        """A burst of requests."""
        run = urllib.parse.quote(name)
        paths = [f"/wantune/runs/{run}", "/wantune/runs", "/wantune/runs/nothing", f"/wantune/node?run_name={run}"]
        with ThreadPoolExecutor(REQUESTS) as threads:
            list(threads.map(self._get, [paths[index % len(paths)] for index in range(REQUESTS)]))

    def _get(self, path: str) -> None:
        try:
            self.server.get(path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise


@contextmanager
def _pages(chromium, server):
    """Open the graph in two browsers, with our scripts and without.

    Yields:
        wake(*states), which lets the browsers of these states run and suspends the others.
    """
    import psutil

    processes: dict[str, subprocess.Popen] = {}

    def wake(*states: str) -> None:
        for state, process in processes.items():
            for each in psutil.Process(process.pid).children(recursive=True):
                each.send_signal(signal.SIGCONT if state in states else signal.SIGSTOP)

    env = {**os.environ, "WANTUNE_CHROMIUM": chromium.chromium, "WANTUNE_PLAYWRIGHT": str(chromium.playwright)}
    try:
        for state, block in ((OPEN, ""), (OURS_OUT, f"/extensions/{host.ROOT.name}/")):
            command = [chromium.node, str(host.ROOT / "bench" / "open_page.mjs"),
                       json.dumps({"url": server.url, "block": block})]
            processes[state] = process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            if process.stdout.readline().strip() != "open":
                raise RuntimeError("The page did not open; see above.")
        yield wake
    finally:
        wake(*processes)
        for process in processes.values():
            process.stdin.close()
            process.wait(60)


def _graph(pictures: Path) -> dict:
    from wantune.demo import graph as graphs

    names = ("unet", "vae", "clip", "prompt", "epochs", "seed")
    options = argparse.Namespace(folder=pictures, trigger="zwx", **dict.fromkeys(names))
    graph = graphs.adapt(graphs.load(host.ROOT), options, host.ROOT)
    for entry in graph.values():
        if entry["class_type"] == "WanTune_TrainWanLoRA":
            entry["inputs"]["batch_size"] = 1
            del entry["inputs"]["previews"]
    return graph


if __name__ == "__main__":
    main()
