"""Both experts through a real ComfyUI server: trained by turns, stopped, queued again, saved, applied, sampled."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wantune.demo import graph as graphs
from wantune.demo.server import PromptFailed, Server
from wantune.tests.conftest import ROOT
from wantune.tests.nodes.test_server import APPLY, LOAD, SAVE, TRAIN, follow, frames, node
from wantune.tests.support import tools

NAMES = {"high": "wan2.2_t2v_high_noise_tiny.safetensors", "low": "wan2.2_t2v_low_noise_tiny.safetensors"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with two models of the small world's shape, named as the experts are."""
    folder = tmp_path_factory.mktemp("experts")
    tensors = load_file(tools.WORLD / "dit.safetensors")
    for factor, name in enumerate(NAMES.values(), 100):
        save_file({key: value * (factor / 100) for key, value in tensors.items()}, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(comfy, models, tmp_path_factory):
    place = tmp_path_factory.mktemp("pair_server")
    paths = place / "experts.yaml"
    paths.write_text(json.dumps({"experts": {"diffusion_models": str(models)}}), encoding="utf-8")
    arguments = ("--extra-model-paths-config", str(paths))
    with Server(Path(sys.executable), comfy, ROOT, place, arguments=arguments) as running:
        yield running


@pytest.fixture
def graph(tmp_path_factory) -> dict:
    """The example with two models: a video is begun by the one and ended by the other, as Wan2.2 is sampled."""
    names = ("unet", "vae", "clip", "prompt", "epochs", "seed")
    pictures = tools.write_pictures(tmp_path_factory.mktemp("real pictures"))
    options = argparse.Namespace(folder=pictures, trigger="zwx", **dict.fromkeys(names))
    found = graphs.adapt(graphs.load(ROOT), options, ROOT)
    node(found, LOAD).update(num_repeats=1)
    node(found, "UNETLoader").update(unet_name=NAMES["high"])
    loader, train, apply = (graphs.only(found, name) for name in ("UNETLoader", TRAIN, APPLY))
    found["low"] = {"class_type": "UNETLoader", "inputs": {"unet_name": NAMES["low"], "weight_dtype": "default"}}
    del node(found, TRAIN)["previews"]
    node(found, TRAIN).update(model_low=["low", 0], epochs=8, max_steps=12, run_name="pair", batch_size=4)
    node(found, SAVE).update(lora_low=[train, 3], filename="pair")
    node(found, APPLY).update(model=[loader, 0], model_low=["low", 0], lora_low=[train, 3])
    for number in [key for key, entry in found.items() if entry["class_type"] in (
            "KSampler", "VAEDecode", "WanTune_CompareVideos", "ModelSamplingSD3")]:
        del found[number]
    latent = next(key for key, entry in found.items() if entry["class_type"] == "EmptyHunyuanLatentVideo")
    found[latent]["inputs"].update(length=5)
    common = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "steps": 4, "noise_seed": 1,
              "positive": ["6", 0], "negative": ["7", 0]}
    found["first"] = {"class_type": "KSamplerAdvanced", "inputs": {
        **common, "model": [apply, 0], "latent_image": [latent, 0], "add_noise": "enable", "start_at_step": 0,
        "end_at_step": 2, "return_with_leftover_noise": "enable"}}
    found["second"] = {"class_type": "KSamplerAdvanced", "inputs": {
        **common, "model": [apply, 1], "latent_image": ["first", 0], "add_noise": "disable", "start_at_step": 2,
        "end_at_step": 4, "return_with_leftover_noise": "disable"}}
    vae = graphs.only(found, "VAELoader")
    found["decoded"] = {"class_type": "VAEDecode", "inputs": {"samples": ["second", 0], "vae": [vae, 0]}}
    found["video"] = {"class_type": "SaveWEBM", "inputs": {
        "images": ["decoded", 0], "filename_prefix": "pair", "codec": "vp9", "fps": 16.0, "crf": 1.0}}
    return found


def logged(server, expert: str, name: str = "pair") -> list[dict]:
    (folder,) = server.folder("output").glob(f"wantune/{name}_{expert}-*")
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(lines: list[dict]) -> list[int]:
    return [line["step"] for line in lines if line["event"] == "StepDone"]


def test_from_two_models_to_a_video_of_both(server, graph):
    seen = asyncio.run(follow(server, graph))
    assert seen[-1][0] == "execution_success", [entry for entry in seen if entry[0] == "execution_error"]
    told = [data for kind, data in seen if kind == "wantune.step"]
    runs = list(dict.fromkeys(data["run"] for data in told))
    assert [run.rsplit("-", 1)[0] for run in runs] == ["pair_high", "pair_low"]
    for run, expert in zip(runs, NAMES, strict=True):
        assert [step for data in told if data["run"] == run for step, _, _ in data["points"]] == list(range(1, 13))
        steps = [line for line in logged(server, expert) if line["event"] == "StepDone"]
        low, high = {"high": (0.875, 1.0), "low": (0.0, 0.875)}[expert]
        assert all(low <= t <= high for line in steps for t in line["timesteps"])
    outputs = server.wait(seen[-1][1]["prompt_id"], 60)["outputs"]
    for number in (graphs.only(graph, APPLY), graphs.only(graph, SAVE)):
        assert json.dumps(outputs[number]).count("40 of 40 modules matched") == 2
    assert "expert" not in json.dumps(outputs[graphs.only(graph, APPLY)])
    for expert in NAMES:
        with safe_open(server.folder("loras") / f"pair_{expert}_00001.safetensors", "pt") as file:
            assert file.metadata()["wantune.expert"] == expert
            assert file.metadata()["ss_base_model_version"] == "Wan Video 2.2 T2V-A14B"
            assert f"the {expert}-noise expert of Wan2.2 A14B" in file.metadata()["wantune.base_model"]
    assert len(frames(server.fetch(outputs["video"]["images"][0]))) == 5
    assert "low expert, step 12/12" in server.log() and "trained as the" not in server.log()


def test_stopped_both_go_on_and_a_node_knows_both_runs(server, graph):
    node(graph, TRAIN).update(epochs=2000, max_steps=60, run_name="stopped", seed=11)  # another run than that before
    prompt = server.post(graph)
    waited = 0
    while "low expert, step 1/60" not in server.log() and waited < 600:
        waited += 1
        time.sleep(0.05)
    answer = server.get("/wantune/node?workflow=&node=1&run_name=stopped")
    (high, low) = answer["run"], answer["run_low"]
    assert (high.rsplit("-", 1)[0], low.rsplit("-", 1)[0]) == ("stopped_high", "stopped_low")
    states = {run: server.get(f"/wantune/runs/{run}") for run in (high, low)}
    assert {state["state"] for state in states.values()} == {"running"}
    assert sorted(state["is_waiting"] for state in states.values()) == [False, True]
    assert server.ask("/wantune/stop", {"run": high}) == {"stopping": True}
    entry = server.wait(prompt, 120)
    assert "execution_success" in [kind for kind, _ in entry["status"]["messages"]], "the graph went on"
    done = {expert: steps_of(logged(server, expert, "stopped")) for expert in NAMES}
    for expert, steps in done.items():
        assert logged(server, expert, "stopped")[-1]["reason"] == "stopped" and 1 <= len(steps) < 60
    server.run(graph)
    for expert, steps in done.items():
        lines = logged(server, expert, "stopped")
        assert steps_of(lines) == list(range(1, 61))
        assert [line["step"] for line in lines if line["event"] == "Started"] == [0, len(steps)]


def test_with_one_model_the_outputs_of_the_other_give_nothing_and_what_they_are_linked_to_goes_on(server, graph):
    del node(graph, TRAIN)["model_low"]
    for name in ("model_low", "lora_low"):
        del node(graph, APPLY)[name]
    graph["second"]["inputs"]["model"] = [graphs.only(graph, APPLY), 0]
    node(graph, TRAIN).update(max_steps=1, run_name="alone")
    node(graph, SAVE).update(filename="alone")
    server.run(graph)
    assert [path.name for path in server.folder("loras").glob("alone*")] == ["alone_00001.safetensors"]


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"model_low": ["37", 0]}, "model and model_low hold the same weights; connect the high-noise expert to model"),
    ({"model": ["low", 0], "model_low": ["37", 0]}, "By their names wan2.2_t2v_low_noise_tiny.safetensors is the low"),
])
def test_models_that_are_no_pair_are_refused_before_a_step(server, graph, changes, sentence):
    node(graph, TRAIN).update(changes, run_name="refused")
    with pytest.raises(PromptFailed, match=sentence):
        server.run(graph)
    assert not list(server.folder("output").glob("wantune/refused*"))


def test_a_boundary_out_of_range_is_refused_before_anything_runs(server, graph):
    node(graph, TRAIN).update(boundary=1.5)
    with pytest.raises(PromptFailed, match="boundary is 1.5; choose more than 0 and less than 1"):
        server.post(graph)
