"""What the example workflows are made to show: one LoRA more in the second video, previews of the graph itself."""

import pytest

from wantune.tests.support.example_workflows import (
    NAMES,
    api_graph,
    describe_nodes,
    inputs_of,
    load,
    ours,
    samplers_of,
    widget_values,
)
from wantune.trainer.settings import presets

PERSON = {"folder": "wantune_example", "trigger_word": "GF Carty Chan"}
MOVEMENT = {"folder": "wantune_clips", "trigger_word": "zwx spin", "frame_buckets": "33"}
BY_CLIPS = {"preset": "motion, clips", **presets.PRESETS["motion, clips"]}
SAME_SEED = {"seed": 82628696717253, "every_epochs": 5}
CHOSEN = {
    "train_and_compare": {
        "LoadDataset": PERSON,
        "PreviewSettings": {**SAME_SEED, "width": 832, "height": 480, "frames": 33, "steps": 30, "cfg": 6, "shift": 8,
                            "every_epochs": 4, "sampler_name": "uni_pc"}},
    "train_i2v": {
        "LoadDataset": MOVEMENT, "DatasetSettings": {"condition": "first frame"}, "ObjectiveSettings": {"shift": 3},
        "PreviewSettings": {**SAME_SEED, "width": 512, "height": 512, "frames": 33, "steps": 20, "cfg": 6, "shift": 8,
                            "sampler_name": "uni_pc"},
        "TrainWanLoRA": {**BY_CLIPS, "run_name": "my_i2v_lora"}, "SaveLoRA": {"filename": "wantune/my_i2v_lora"}},
    "train_wan22_i2v": {
        "LoadDataset": MOVEMENT, "DatasetSettings": {"condition": "first frame"}, "ObjectiveSettings": {"shift": 5},
        "PreviewSettings": {**SAME_SEED, "width": 640, "height": 640, "frames": 33, "steps": 20, "cfg": 3.5, "shift": 8,
                            "switch_at_step": 10},
        "TrainWanLoRA": {**BY_CLIPS, "run_name": "my_wan22_i2v_lora"},
        "SaveLoRA": {"filename": "wantune/my_wan22_i2v_lora"}},
    "train_wan22_t2v": {
        "LoadDataset": PERSON, "ObjectiveSettings": {"shift": 5},
        "PreviewSettings": {**SAME_SEED, "width": 640, "height": 640, "frames": 33, "steps": 4, "cfg": 1,
                            "every_epochs": 4, "switch_at_step": 2},
        "TrainWanLoRA": {"run_name": "my_wan22_lora"}, "SaveLoRA": {"filename": "wantune/my_wan22_lora"}},
    "train_5b": {
        "LoadDataset": {**PERSON, "resolution": 704, "frame_buckets": "1, 49"},
        "DatasetSettings": {"model": "Wan2.2 5B"},
        "PreviewSettings": {**SAME_SEED, "width": 1280, "height": 704, "frames": 49, "steps": 20, "shift": 8,
                            "sampler_name": "uni_pc"},
        "TrainWanLoRA": {"run_name": "my_5b_lora"}, "SaveLoRA": {"filename": "wantune/my_5b_lora"},
        "CompareVideos": {"fps": 24}},
}
"""What of our nodes' widgets is not at its default, by type without its prefix."""


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def workflow(name) -> dict:
    return load(name)


@pytest.fixture(scope="module")
def descriptions(comfy) -> dict:
    return describe_nodes()


def test_our_nodes_show_their_defaults_but_for_what_the_example_is_about(name, workflow, descriptions):
    found = {}
    for node in workflow["nodes"]:
        if node["type"].startswith("WanTune_"):
            inputs = inputs_of(descriptions[node["type"]])
            values = widget_values(node, descriptions[node["type"]])
            chosen = {key: value for key, value in values.items() if value != inputs[key][1]["default"]}
            found[node["type"].removeprefix("WanTune_")] = chosen, values
    for kind, (chosen, values) in found.items():
        assert chosen.items() <= CHOSEN[name].get(kind, {}).items() <= values.items(), kind
    assert CHOSEN[name].keys() <= found.keys()
    train = dict(found["TrainWanLoRA"][1])
    assert presets.overruled(train.pop("preset"), train) == ""


def test_the_two_videos_differ_in_the_lora_alone(workflow, descriptions):
    graph = api_graph(workflow, descriptions)
    compare, apply = ours(graph, "CompareVideos"), ours(graph, "ApplyLoRA")
    sides = [samplers_of(graph, compare[side]) for side in ("base", "tuned")]
    for output, (base, tuned) in enumerate(zip(*sides, strict=True)):
        base_model, (source, slot) = base.pop("model"), tuned.pop("model")
        assert graph[base_model[0]]["class_type"] == "ModelSamplingSD3"
        assert graph[source]["inputs"] is apply and slot == output
        assert apply[("model", "model_low")[output]] == base_model
        if output:  # that of the sampler before
            base.pop("latent_image"), tuned.pop("latent_image")
        assert base == tuned
    assert compare["model"] == [source, 0]


def test_two_experts_share_the_steps_and_nothing_is_lost_between_them(workflow, descriptions):
    graph = api_graph(workflow, descriptions)
    stages = samplers_of(graph, ours(graph, "CompareVideos")["tuned"])
    train, apply, save = (ours(graph, kind) for kind in ("TrainWanLoRA", "ApplyLoRA", "SaveLoRA"))
    is_pair = "model_low" in train
    assert len(stages) == 1 + is_pair
    assert ("model_low" in apply, "lora_low" in apply, "lora_low" in save) == (is_pair,) * 3
    if is_pair:
        high, low = stages
        assert (high["add_noise"], high["return_with_leftover_noise"]) == ("enable", "enable")
        assert (low["add_noise"], low["return_with_leftover_noise"]) == ("disable", "disable")
        assert high["start_at_step"] == 0 and high["end_at_step"] == low["start_at_step"] < low["end_at_step"]
        assert (apply["lora"][1], apply["lora_low"][1]) == (0, 3) and (save["lora"][1], save["lora_low"][1]) == (0, 3)


def test_trained_is_the_model_as_it_was_loaded_and_by_its_own_files(workflow, descriptions):
    graph = api_graph(workflow, descriptions)
    train, apply = ours(graph, "TrainWanLoRA"), ours(graph, "ApplyLoRA")
    for socket in ("model", "model_low"):
        if socket not in train:
            continue
        loader, sampled = train[socket][0], apply[socket]
        assert graph[loader]["class_type"] == "UNETLoader"
        while sampled[0] != loader:  # the way to what is sampled: its shift, and LoRAs that are not trained on
            assert graph[sampled[0]]["class_type"] in ("ModelSamplingSD3", "LoraLoaderModelOnly")
            sampled = graph[sampled[0]]["inputs"]["model"]
        other = {"model": "low_noise", "model_low": "high_noise"}[socket]
        assert other not in graph[loader]["inputs"]["unet_name"]


def test_previews_sample_what_the_graph_samples(workflow, descriptions):
    graph = api_graph(workflow, descriptions)
    previews = ours(graph, "PreviewSettings")
    stages = samplers_of(graph, ours(graph, "CompareVideos")["base"])
    assert [previews.get(socket) for socket in ("model", "model_low")[:len(stages)]] == [
        stage["model"] for stage in stages]
    assert previews["latent"] == stages[0]["latent_image"]
    size = graph[previews["latent"][0]]["inputs"]
    assert [previews[key] for key in ("width", "height", "frames")] == [
        size[key] for key in ("width", "height", "length")]
    assert previews["switch_at_step"] == (stages[1]["start_at_step"] if len(stages) == 2 else 0)
    for stage in stages:
        seed = stage.get("noise_seed", stage.get("seed"))
        assert previews["seed"] == seed
        for key in ("positive", "negative", "steps", "cfg", "sampler_name", "scheduler"):
            assert previews[key] == stage[key], key
