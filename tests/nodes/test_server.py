"""The main job through a real ComfyUI server: queue the example, follow it, read the videos back."""

import argparse
import asyncio
import io
import json
import re
import sys
import time
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
from PIL import Image

from wantune.demo import graph as graphs
from wantune.demo.server import PromptFailed, Server
from wantune.tests.conftest import ROOT
from wantune.tests.support import tools

TRAIN, LOAD, SAVE, APPLY, COMPARE = (
    f"WanTune_{name}" for name in ("TrainWanLoRA", "LoadDataset", "SaveLoRA", "ApplyLoRA", "CompareVideos")
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tools.write_pictures(tmp_path_factory.mktemp("real pictures"))


@pytest.fixture
def graph(pictures) -> dict:
    """The example on the small world and four real pictures, 8 steps."""
    names = ("unet", "vae", "clip", "prompt", "epochs", "seed")
    options = argparse.Namespace(folder=pictures, trigger="zwx", **dict.fromkeys(names))
    adapted = graphs.adapt(graphs.load(ROOT), options, ROOT)
    node(adapted, LOAD).update(num_repeats=1)
    node(adapted, TRAIN).update(epochs=8, max_steps=8, run_name="server_test")
    del node(adapted, TRAIN)["previews"], node(adapted, TRAIN)["objective"]
    node(adapted, "KSampler").update(steps=2)
    adapted[node(adapted, "KSampler")["latent_image"][0]]["inputs"].update(length=5)
    return adapted


def node(graph: dict, class_type: str) -> dict:
    """The inputs of the first node of that type; those of all KSamplers are kept alike by the caller."""
    return next(entry["inputs"] for entry in graph.values() if entry["class_type"] == class_type)


async def follow(server, graph: dict) -> list:
    """Queue a graph and collect what the websocket says until it ends."""
    seen = []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{server.url}/ws?clientId=watcher", max_msg_size=0) as socket:
            async with session.post(f"{server.url}/prompt", json={"prompt": graph, "client_id": "watcher"}) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    seen.append(("binary", bytes(message.data)))
                    continue
                event = json.loads(message.data)
                seen.append((event["type"], event["data"]))
                if event["data"].get("prompt_id") == prompt_id and event["type"] in (
                        "execution_success", "execution_error", "execution_interrupted"):
                    return seen
    return seen


def frames(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_example_runs_from_pictures_to_the_comparison(server, graph):
    shown = graphs.add_outputs(graph)
    seen = asyncio.run(follow(server, graph))
    assert seen[-1][0] == "execution_success", [entry for entry in seen if entry[0] == "execution_error"]

    train = graphs.only(graph, TRAIN)
    steps = [data for kind, data in seen if kind == "wantune.step"]
    assert steps[-1]["step"] == steps[-1]["total_steps"] == 8 and steps[-1]["node"] == train
    assert any(kind == "progress_state" and train in data["nodes"] for kind, data in seen)
    texts = [data.decode(errors="replace") for kind, data in seen if kind == "binary"]
    assert [step for data in steps for step, _, _ in data["points"]] == list(range(1, 9))
    assert all(loss > 0 and 0 < rate <= 1e-3 for data in steps for _, loss, rate in data["points"])
    assert steps[-1].keys() >= {"epoch", "seconds_per_step", "samples_per_second", "seconds_left", "memory_bytes"}
    (run,) = server.folder("output").glob("wantune/server_test-*")
    assert {data["run"] for kind, data in seen if kind.startswith("wantune.")} == {run.name}
    assert any("encoding" in text or "cache holds" in text for text in texts)
    assert "step 8/8" in server.log()

    outputs = server.wait(seen[-1][1]["prompt_id"], 60)["outputs"]
    assert outputs[graphs.only(graph, LOAD)]["text"][0].startswith("4 of 4 files are used")
    videos = {name: frames(server.fetch(outputs[number]["images"][0]))
              for name, number in (("base", shown.base), ("lora", shown.tuned), ("compare", shown.compare))}
    assert videos["base"].shape == videos["lora"].shape == (5, 64, 64, 3)
    assert np.abs(videos["base"].astype(int) - videos["lora"]).mean() > 1
    assert len(videos["compare"]) == 5 and videos["compare"].shape[2] >= 2 * 64
    assert "40 of 40 modules matched" in json.dumps(outputs[shown.apply])
    assert "40 of 40 modules matched" in json.dumps(outputs[graphs.only(graph, SAVE)])

    (name,) = outputs[shown.lora_name]["text"]
    listed = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert name in (listed[0] if isinstance(listed[0], list) else listed[1]["options"])


def test_an_unchanged_graph_does_nothing_again(server, graph):
    asyncio.run(follow(server, graph))
    again = asyncio.run(follow(server, graph))
    assert again[-1][0] == "execution_success"
    assert not [data for kind, data in again if kind == "wantune.step"]


@pytest.fixture
def base_pixels(server, graph):
    """Samples the base video of the graph and returns its pixels; each call with another denoise above 0.9999,
    at which ComfyUI samples the same, but not from memory."""
    base = {number: entry for number, entry in graph.items() if not entry["class_type"].startswith("WanTune_")}
    tuned = [number for number, entry in base.items() if entry["class_type"] == "KSampler"
             and graph[entry["inputs"]["model"][0]]["class_type"] == APPLY]
    for number in tuned:
        base = {key: entry for key, entry in base.items() if key != number and [number, 0] not in
                entry["inputs"].values()}
    images = next(number for number, entry in base.items() if entry["class_type"] == "VAEDecode")
    base["900"] = {"class_type": "SaveImage", "inputs": {"images": [images, 0], "filename_prefix": "base"}}

    def pixels() -> list[bytes]:
        node(base, "KSampler")["denoise"] -= 1e-7
        files = server.run(base)["outputs"]["900"]["images"]
        return [Image.open(io.BytesIO(server.fetch(file))).tobytes() for file in files]

    return pixels


def test_after_cancel_the_base_video_is_the_same_and_the_next_run_works(server, graph, base_pixels):
    before = base_pixels()
    node(graph, TRAIN).update(epochs=500, max_steps=0, seed=7)
    prompt = server.post(graph)
    waited = 0
    while "step 1/1000 " not in server.log():
        waited += 1
        assert waited < 600
        time.sleep(0.1)
    server.interrupt()
    entry = server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    assert base_pixels() == before
    node(graph, TRAIN).update(epochs=1, max_steps=2)
    server.run(graph)


def test_stop_goes_on_in_the_graph_and_queueing_again_goes_on_in_the_run(server, graph):
    assert server.ask("/wantune/stop", {}) == {"stopping": False}, "nothing runs"
    graphs.add_outputs(graph)
    node(graph, TRAIN).update(epochs=60, max_steps=0, seed=11, run_name="stopped")
    prompt = server.post(graph)
    waited = 0
    while "step 1/120 " not in server.log():
        waited += 1
        assert waited < 600
        time.sleep(0.05)
    assert server.ask("/wantune/stop", {}) == {"stopping": True}
    entry = server.wait(prompt, 120)
    assert "execution_success" in [kind for kind, _ in entry["status"]["messages"]], "the graph went on"
    (folder,) = server.folder("output").glob("wantune/stopped-*")
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    done = [line["step"] for line in steps if line["event"] == "StepDone"]
    assert 1 <= len(done) < 120 and steps[-1]["reason"] == "stopped"
    asyncio.run(follow(server, graph))
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["event"] == "Started"] == [0, len(done)]
    assert [line["step"] for line in steps if line["event"] == "StepDone"] == list(range(1, 121))
    again = asyncio.run(follow(server, graph))
    assert again[-1][0] == "execution_success" and not [data for kind, data in again if kind == "wantune.step"]


def test_a_finished_run_is_not_trained_again_by_another_server(comfy, graph, tmp_path):
    """After ComfyUI was restarted: the result is loaded."""
    node(graph, TRAIN).update(epochs=2, max_steps=0, run_name="twice")
    lasts = []
    for _ in range(2):
        with Server(Path(sys.executable), comfy, ROOT, tmp_path / "server") as running:
            seen = asyncio.run(follow(running, graph))
            assert seen[-1][0] == "execution_success"
            lasts.append([data for kind, data in seen if kind == "wantune.step"])
            (folder,) = running.folder("output").glob("wantune/twice-*")
            log = running.log()
    assert lasts[0] and not lasts[1] and f"trained before: 4 steps, loaded from {folder.name}" in log


@pytest.mark.long
def test_cancel_at_random_moments_never_leaves_a_trace(server, graph, base_pixels):
    """From the first look at the folder to the last sampling step, sixty times."""
    random = np.random.default_rng(0)
    before = base_pixels()
    for attempt in range(60):
        node(graph, TRAIN).update(epochs=20, max_steps=0, seed=1000 + attempt)
        node(graph, LOAD).update(trigger_word=f"zwx{attempt}")
        prompt = server.post(graph)
        time.sleep(random.uniform(0, 4))
        server.interrupt()
        statuses = [kind for kind, _ in server.wait(prompt, 120)["status"]["messages"]]
        assert "execution_error" not in statuses
        if attempt % 5 == 4:
            assert base_pixels() == before, f"after cancel number {attempt}"


def test_a_prompt_may_leave_out_what_its_preset_says(server, graph):
    train = node(graph, TRAIN)
    for name in ("epochs", "batch_size", "learning_rate", "rank", "alpha", "seed"):
        del train[name]
    train.update(preset="quick try", max_steps=1, run_name="by_preset")
    server.run(graph)
    (folder,) = server.folder("output").glob("wantune/by_preset-*")
    config = json.loads((folder / "config.json").read_text())
    assert (config["epochs"], config["max_steps"], config["learning_rate"]) == (100, 1, 2e-4)
    assert (config["lora"]["rank"], config["lora"]["alpha"]) == (16, 16)
    assert "max_steps 1 (preset 300)" in server.log()


def test_core_nodes_take_what_we_give(server, graph):
    """Load LoRA Model, Save LoRA Weights and Plot Loss Graph."""
    train = graphs.only(graph, TRAIN)
    core = {number: entry for number, entry in graph.items() if entry["class_type"] in (
        "UNETLoader", "VAELoader", graphs.TEXT_ENCODER, LOAD, "WanTune_CacheLatents", TRAIN)}
    node(core, TRAIN).update(epochs=1, max_steps=2)
    core["901"] = {"class_type": "SaveLoRA", "inputs": {"lora": [train, 0], "prefix": "loras/core", "steps": 2}}
    core["902"] = {"class_type": "LossGraphNode", "inputs": {"loss": [train, 1], "filename_prefix": "loss_graph"}}
    core["903"] = {"class_type": "LoraModelLoader", "inputs": {
        "model": [graphs.only(graph, "UNETLoader"), 0], "lora": [train, 0], "strength_model": 1.0, "bypass": False}}
    core["904"] = {"class_type": "PreviewAny", "inputs": {"source": ["903", 0]}}
    server.run(core)
    assert list(server.folder("output").rglob("core*.safetensors"))
    assert "lora key not loaded" not in server.log()


def test_a_graph_may_end_with_any_of_the_first_three_nodes(server, graph):
    """The report alone, the cache alone, or the training alone."""
    kept = {number: entry for number, entry in graph.items() if entry["class_type"] in (
        "UNETLoader", "VAELoader", graphs.TEXT_ENCODER, LOAD, "WanTune_CacheLatents", TRAIN)}
    node(kept, TRAIN).update(epochs=1, max_steps=2)
    for last in (TRAIN, "WanTune_CacheLatents", LOAD):
        server.run(kept)
        del kept[graphs.only(kept, last)]


@pytest.mark.parametrize(("class_type", "changes", "sentence"), [
    (LOAD, {"folder": "no_such_folder"}, "no_such_folder does not exist; give the folder"),
    (LOAD, {"frame_buckets": "1, 30"}, "frame_buckets has 30; Wan takes 4n+1 frames, the nearest is 29"),
    (TRAIN, {"rank": 0}, "rank is 0; choose 1 to 1024"),
    (TRAIN, {"learning_rate": 0.0}, "learning_rate is 0.0; choose a positive number"),
    (TRAIN, {"run_name": "a/b"}, "run_name 'a/b' has the character '/'"),
])
def test_mistakes_are_refused_before_anything_runs(server, graph, class_type, changes, sentence):
    node(graph, class_type).update(changes)
    with pytest.raises(PromptFailed, match=re.escape(sentence)):
        server.post(graph)


def test_a_mistake_found_on_the_way_is_one_sentence(server, graph, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    node(graph, LOAD).update(folder=str(tmp_path))
    with pytest.raises(PromptFailed, match="broken.png is not a picture Pillow can read; save it again as png or jpg"):
        server.run(graph)


def test_the_log_holds_no_complaint_of_ours(server):
    assert "(IMPORT FAILED)" not in server.log()


def test_a_run_keeps_whose_it_is_and_its_graph_and_the_page_finds_it_again(server, graph):
    node(graph, TRAIN).update(epochs=1, max_steps=1, seed=21, run_name="kept")
    workflow = {"id": "0b9c3f3e-0000-4000-8000-000000000001", "nodes": []}
    train = graphs.only(graph, TRAIN)
    started = []
    for strength in (1.0, 0.5):  # the second time the run is there already
        node(graph, APPLY).update(strength=strength)
        server.run(graph, workflow=workflow)
        (folder,) = server.folder("output").glob("wantune/kept-*")
        origin = json.loads((folder / "origin.json").read_text())
        assert (origin["workflow"], origin["node"]) == (workflow["id"], train)
        assert origin["base"].startswith("a Wan model")
        started.append(origin["started"])
        kept = server.get(f"/wantune/runs/{folder.name}/workflow")
        assert kept["workflow"] == workflow and kept["prompt"].keys() == graph.keys()
        assert kept["prompt"][train]["inputs"] == graph[train]["inputs"]
    assert started[0] == started[1]

    def shown(number: str) -> dict:
        return server.get(f"/wantune/node?workflow={workflow['id']}&node={number}")

    assert shown(train)["run"] == folder.name
    compared = shown(graphs.only(graph, COMPARE))["shown"]["compare"]
    assert server.fetch(compared["base"])[4:8] == b"ftyp" == server.fetch(compared["tuned"])[4:8]
    for number in (graphs.only(graph, SAVE), graphs.only(graph, APPLY)):
        assert "40 of 40 modules matched" in shown(number)["shown"]["text"], "also when the page is loaded again"
    assert server.get(f"/wantune/node?workflow=another&node={train}") == {"run": None, "shown": {}}
