"""A run goes elsewhere and comes back: exported by a real server, trained by the command line, ended in the graph."""

import asyncio
import json
import shutil
from pathlib import Path

from wantune.command import main as command_line
from wantune.demo import graph as graphs
from wantune.tests.nodes.test_server import LOAD, SAVE, TRAIN, follow, graph, node, pictures  # noqa: F401
from wantune.tests.support import tools

EXPORT = "WanTune_ExportTrainingJob"


def without_videos(graph: dict) -> dict:  # noqa: F811
    """The graph as far as Save LoRA."""
    shown = {graphs.only(graph, SAVE)}
    while True:
        above = {value[0] for number in shown for value in graph[number]["inputs"].values() if isinstance(value, list)}
        if above <= shown:
            return {number: graph[number] for number in shown}
        shown |= above


def test_a_run_is_exported_trained_by_the_command_line_and_ended_in_the_graph(
        server, graph, tmp_path, monkeypatch):  # noqa: F811
    graph = without_videos(graph)
    node(graph, TRAIN).update(run_name="there and back", seed=16)
    settings = {name: value for name, value in node(graph, TRAIN).items() if name not in ("restart", "attempt")}
    exporting = {number: entry for number, entry in graph.items() if entry["class_type"] not in (TRAIN, SAVE)}
    exporting["job"] = {"class_type": EXPORT, "inputs": {
        **settings, "dataset": [graphs.only(graph, LOAD), 0], "include_dataset": True, "include_cache": True}}
    outputs = server.run(exporting)["outputs"]
    (told,) = outputs["job"]["text"]
    folder = Path(told.removeprefix("Wrote "))
    assert folder.parent == server.folder("output") / "wantune_jobs", told
    assert not list(server.folder("output").glob("wantune/there and back-*")), "nothing is trained here"

    job = Path(shutil.copytree(folder, tmp_path / "other machine"))
    shutil.copy(tools.WORLD / "dit.safetensors", job / "models")
    monkeypatch.chdir(job)
    assert command_line.main(["train", ".", "--max-steps", "4"]) == 0
    (run,) = (job / "output" / "wantune").glob("there and back-*")

    shutil.copytree(run, server.folder("output") / "wantune" / run.name)
    seen = asyncio.run(follow(server, graph))
    assert seen[-1][0] == "execution_success", [entry for entry in seen if entry[0] == "execution_error"]
    steps = [data for kind, data in seen if kind == "wantune.step"]
    assert {data["run"] for data in steps} == {run.name} and steps[-1]["step"] == 8
    log = (server.folder("output") / "wantune" / run.name / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["step"] for line in lines if line["event"] == "Started"] == [0, 4], "it went on from there"
    assert [line["step"] for line in lines if line["event"] == "StepDone"] == list(range(1, 9))
