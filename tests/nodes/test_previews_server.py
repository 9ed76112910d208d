"""Previews of a MODEL through a real ComfyUI server: the video of the graph's own KSampler, and the same training."""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from wantune.demo import graph as graphs
from wantune.tests.conftest import ROOT
from wantune.tests.support import frame_models, tools
from wantune.tests.support.videos import read_back

TRAIN, PREVIEWS, LOAD = (f"WanTune_{name}" for name in ("TrainWanLoRA", "PreviewSettings", "LoadDataset"))


@pytest.fixture
def graph(tmp_path) -> dict:
    """The example on the small world and four real pictures, four steps; its previews sample the numbers of its
    KSamplers."""
    names = ("unet", "vae", "clip", "prompt", "epochs", "seed")
    pictures = tools.write_pictures(tmp_path / "pictures")
    options = argparse.Namespace(folder=pictures, trigger="zwx", **dict.fromkeys(names))
    adapted = graphs.adapt(graphs.load(ROOT), options, ROOT)
    sampler, latent = inputs(adapted, "KSampler"), inputs(adapted, "EmptyHunyuanLatentVideo")
    for entry in adapted.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"].update(steps=4, sampler_name="uni_pc", seed=5)
    latent.update(length=5)
    inputs(adapted, LOAD).update(num_repeats=1)
    inputs(adapted, TRAIN).update(epochs=8, max_steps=4, learning_rate=2e-2, run_name="own_graph")
    inputs(adapted, PREVIEWS).update(
        frames=5, every_steps=2, **{name: sampler[name] for name in ("steps", "sampler_name", "seed")})
    for number, name in (("8", "base"), ("66", "lora")):
        adapted[f"90{number}"] = {
            "class_type": "SaveImage", "inputs": {"images": [number, 0], "filename_prefix": name}}
    return adapted


def inputs(graph: dict, class_type: str) -> dict:
    """Of the first node of that type."""
    return next(entry["inputs"] for entry in graph.values() if entry["class_type"] == class_type)


def pixels(server, outputs: dict, number: str) -> np.ndarray:
    files = outputs[number]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(server.fetch(file)))) for file in files]).astype(np.float32)


def log_of(folder: Path, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == event]


def assert_measured(server, folder: Path) -> None:
    """Motion and likeness in the log, of the newest preview in the list of runs, and in ComfyUI's own log."""
    base, *_, last = log_of(folder, "Previewed")
    for line in (base, last):
        video = read_back(folder / "samples" / f"{line['name']}_0.mp4")[0].astype(np.float32)
        assert line["motion"] == [pytest.approx(np.abs(np.diff(video, axis=0)).mean(), rel=0.3, abs=1)], "compressed"
    likeness = [line["likeness"][0] for line in (base, last)]
    assert (last["base_motion"], last["base_likeness"]) == (base["motion"], base["likeness"])
    assert all(-1 <= value <= 1 for value in likeness) and likeness[0] != likeness[1]
    (run,) = [run for run in json.loads(server._request("/wantune/runs"))["runs"] if run["run"] == folder.name]
    assert run["preview"] == {"motion": last["motion"][0], "base_motion": base["motion"][0],
                              "likeness": likeness[1], "base_likeness": likeness[0]}
    assert f"likeness {likeness[1]:.2f} (base {likeness[0]:.2f}), motion " in server.log_path.read_text("utf-8")


def test_previews_are_the_videos_of_the_graph_and_training_is_as_without(server, graph, tmp_path):
    inputs(graph, TRAIN).update(attempt=1)
    previews = inputs(graph, TRAIN).pop("previews")
    before = server.run(graph)["outputs"]
    inputs(graph, TRAIN).update(previews=previews, attempt=2)
    clip_vision = frame_models.write_clip_vision(tmp_path / "clip_vision.safetensors", hidden_size=64)
    graph["910"] = {"class_type": "WanTuneTest_LoadClipVision", "inputs": {"name": str(clip_vision)}}
    inputs(graph, PREVIEWS).update(clip_vision=["910", 0])
    outputs = server.run(graph)["outputs"]  # the base video comes from ComfyUI's memory
    quiet, shown = sorted(server.folder("output").glob("wantune/own_graph-*"), key=lambda path: path.stat().st_mtime)
    assert not log_of(quiet, "Previewed") and not log_of(shown, "Noted")
    assert [line["step"] for line in log_of(shown, "Previewed")] == [0, 2, 4]
    assert_measured(server, shown)
    losses = [[line["loss"] for line in log_of(folder, "StepDone")] for folder in (quiet, shown)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    one, other = (load_file(next(folder.glob("step_000004/*adapter*"))) for folder in (quiet, shown))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)

    base, lora = pixels(server, before, "908"), pixels(server, outputs, "9066")
    assert np.abs(base - lora).mean() > 1
    for name, expected, other in (("base_0", base, lora), ("step_000004_0", lora, base)):
        found = read_back(shown / "samples" / f"{name}.mp4")[0].astype(np.float32)
        error = np.abs(found - expected).mean()
        assert error < 8 and error < np.abs(found - other).mean() / 2, "but for the video's compression"
