"""Each example workflow as it is shipped in API form, through a real ComfyUI server, on tiny models of its family.

They lie under the names that the workflow asks for. Changed are sizes, the folder, the number of steps and the rate.
The example of the small world is in test_server.py.
"""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from skimage import data

from wantune.demo import graph as graphs
from wantune.demo.server import Server
from wantune.tests.conftest import ROOT
from wantune.tests.support import clips, family_files
from wantune.tests.support.example_workflows import load_api, ours
from wantune.tests.support.videos import read_back
from wantune.trainer.media.videos import write_mp4

STEPS, RATE = 3, 4e-2


@dataclass(frozen=True)
class Case:
    """What the run of an example is to say of itself."""

    base_model: str
    """As the files of its LoRAs name it."""
    samples: int
    """That are left of two pictures and two clips."""
    fps: int
    is_pair: bool = False


CASES = {
    "train_i2v": Case("a Wan2.1 I2V model", samples=4, fps=16),
    "train_wan22_i2v": Case("a Wan2.2 I2V model", samples=4, fps=16, is_pair=True),
    "train_wan22_t2v": Case("noise expert of Wan2.2 A14B", samples=4, fps=16, is_pair=True),
    "train_5b": Case("a Wan2.2 5B model", samples=4, fps=24),
}


@pytest.fixture(scope="module")
def server(comfy, tmp_path_factory):
    place = tmp_path_factory.mktemp("examples_server")
    arguments = ("--extra-model-paths-config", str(family_files.write(place / "models")))
    with Server(Path(sys.executable), comfy, ROOT, place, arguments=arguments) as running:
        clips.with_pictures(running.folder("input") / "data")
        Image.fromarray(data.chelsea()[:256, :256]).save(running.folder("input") / "example.png")
        yield running


def logged(folder: Path, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == event]


def encoded(server, output: dict, path: Path, fps: float) -> np.ndarray:
    """Saved pictures as they come out of a video like that of a preview, which is lossy."""
    files = [np.asarray(Image.open(io.BytesIO(server.fetch(file)))) for file in output["images"]]
    write_mp4(path, files, fps)
    return read_back(path)[0].astype(float)


@pytest.mark.parametrize("name", CASES)
def test_the_example_trains_saves_applies_and_its_last_preview_is_its_last_video(server, tmp_path, name):
    case, graph = CASES[name], load_api(name)
    family_files.adapt(graph, "data", STEPS, RATE)
    for side in ("base", "tuned"):
        pictures = ours(graph, "CompareVideos")[side]
        graph[side] = {"class_type": "SaveImage", "inputs": {"images": pictures, "filename_prefix": f"{name}_{side}"}}
    outputs = server.run(graph)["outputs"]

    said = {kind: "\n".join(outputs[graphs.only(graph, f"WanTune_{kind}")]["text"])
            for kind in ("CacheLatents", "SaveLoRA", "ApplyLoRA")}
    assert f"{case.samples} samples are encoded" in said["CacheLatents"]
    run_name, experts = ours(graph, "TrainWanLoRA")["run_name"], ("_high", "_low") if case.is_pair else ("",)
    for kind in ("SaveLoRA", "ApplyLoRA"):
        assert said[kind].count("20 of 20 modules matched") == len(experts) and "trained" not in said[kind]
    runs = [next(server.folder("output").glob(f"wantune/{run_name}{expert}-*")) for expert in experts]
    for run, expert in zip(runs, experts, strict=True):
        losses = [line["loss"] for line in logged(run, "StepDone")]
        assert len(losses) == STEPS and np.isfinite(losses).all() and not logged(run, "Noted")
        with safe_open(server.folder("loras") / "wantune" / f"{run_name}{expert}_00001.safetensors", "pt") as file:
            assert case.base_model in file.metadata()["wantune.base_model"]
            assert file.metadata().get("wantune.expert", "") == expert.removeprefix("_")

    (shown,) = outputs[graphs.only(graph, "WanTune_CompareVideos")]["wantune_compare"]
    assert (shown["fps"], shown["frames"]) == (case.fps, family_files.FRAMES)
    base, tuned = (encoded(server, outputs[side], tmp_path / f"{side}.mp4", case.fps) for side in ("base", "tuned"))
    between = np.abs(base - tuned).mean()
    assert between > 3, "the LoRA changes the video"
    for run, file, expected in ((runs[0], "base", base), (runs[-1], f"step_{STEPS:06d}", tuned)):
        error = np.abs(read_back(run / "samples" / f"{file}_0.mp4")[0] - expected).mean()
        assert error < between / 2, "but for what the pictures were rounded to"
