"""The example workflow, and what the demo makes of it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from wantune.demo import graph, page

ROOT = Path(__file__).resolve().parents[2]
NOTHING = {name: None for name in ("unet", "vae", "clip", "folder", "trigger", "prompt", "epochs", "seed")}


def adapted(**chosen):
    return graph.adapt(graph.load(ROOT), Namespace(**{**NOTHING, **chosen}), ROOT)


def inputs(workflow, class_type):
    return workflow[graph.only(workflow, class_type)]["inputs"]


def test_example_compares_the_same_seed_with_and_without_the_lora():
    example = graph.load(ROOT)
    base, tuned = [node["inputs"] for node in example.values() if node["class_type"] == "KSampler"]
    assert {name for name in base if base[name] != tuned[name]} == {"model"}
    assert base["model"] == [graph.only(example, "ModelSamplingSD3"), 0]
    assert tuned["model"] == [graph.only(example, "WanTune_ApplyLoRA"), 0]
    assert inputs(example, "WanTune_ApplyLoRA")["model"] == base["model"]
    assert inputs(example, "WanTune_TrainWanLoRA")["model"] == [graph.only(example, "UNETLoader"), 0]


def test_small_world_replaces_the_models_that_nobody_named():
    workflow = adapted()
    assert inputs(workflow, "UNETLoader")["unet_name"] == "dit.safetensors"
    assert inputs(workflow, graph.TEXT_ENCODER) == {"name": "umt5.safetensors"}
    assert not [node for node in workflow.values() if node["class_type"] == "CLIPLoader"]
    folder = Path(inputs(workflow, "WanTune_LoadDataset")["folder"])
    pictures = len(list(folder.glob("*.png")))
    train, repeats = inputs(workflow, "WanTune_TrainWanLoRA"), inputs(workflow, "WanTune_LoadDataset")["num_repeats"]
    assert 550 <= train["epochs"] * repeats * pictures / train["batch_size"] <= 650


def test_choices_of_the_user_reach_the_graph(tmp_path):
    workflow = adapted(
        unet="u", vae="v", clip="c", folder=tmp_path, trigger="T", prompt="T walks", epochs=3, seed=7
    )
    assert inputs(workflow, "CLIPLoader")["clip_name"] == "c" and inputs(workflow, "VAELoader")["vae_name"] == "v"
    dataset = inputs(workflow, "WanTune_LoadDataset")
    assert (dataset["folder"], dataset["trigger_word"]) == (str(tmp_path), "T")
    train = inputs(workflow, "WanTune_TrainWanLoRA")
    assert (train["epochs"], train["seed"], train["rank"]) == (3, 7, 32)
    assert {node["inputs"]["seed"] for node in workflow.values() if node["class_type"] == "KSampler"} == {7}
    assert inputs(workflow, "WanTune_PreviewSettings")["seed"] == 7
    assert "T walks" in [node["inputs"].get("text") for node in workflow.values()]


def test_previews_in_the_small_world_sample_what_its_graph_samples():
    workflow = adapted()
    sampler = next(node["inputs"] for node in workflow.values() if node["class_type"] == "KSampler")
    latent, previews = inputs(workflow, "EmptyHunyuanLatentVideo"), inputs(workflow, "WanTune_PreviewSettings")
    assert (previews["model"], previews["latent"]) == (sampler["model"], sampler["latent_image"])
    for name in ("steps", "cfg", "sampler_name", "scheduler", "seed"):
        assert previews[name] == sampler[name], name
    for name, of_latent in (("width", "width"), ("height", "height"), ("frames", "length")):
        assert previews[name] == latent[of_latent], name


def test_a_real_model_without_pictures_learns_the_stills_enlarged():
    workflow = adapted(unet="wan2.1_t2v_1.3B_fp16.safetensors")
    dataset = inputs(workflow, "WanTune_LoadDataset")
    assert dataset["upscale"] is True and dataset["resolution"] == 512 and Path(dataset["folder"]).name == "nines"
    assert inputs(workflow, "CLIPLoader")["clip_name"].startswith("umt5")


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        adapted(folder=tmp_path / "nowhere")


def test_real_models_are_used_when_all_three_are_installed(tmp_path):
    options = Namespace(**NOTHING)
    for folder, name in (("unet", "wan2.1_t2v_1.3B_fp16"), ("vae", "wan_2.1_vae"),
                         ("text_encoders", "umt5_xxl_fp8_e4m3fn_scaled")):
        graph.name_installed_models(graph.load(ROOT), options, tmp_path)
        assert graph.uses_small_world(options)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.safetensors").touch()
    graph.name_installed_models(graph.load(ROOT), options, tmp_path)
    assert options.unet == "wan2.1_t2v_1.3B_fp16.safetensors" and not graph.uses_small_world(options)


def test_added_outputs_save_both_sides_of_the_comparison():
    workflow = adapted()
    shown = graph.add_outputs(workflow)
    compare = workflow[shown.compare]["inputs"]
    for side, node in (("base", shown.base), ("tuned", shown.tuned)):
        video = workflow[node]["inputs"]["video"][0]
        assert workflow[video]["inputs"]["images"] == compare[side]
    assert workflow[shown.run]["inputs"]["source"] == [graph.only(workflow, "WanTune_TrainWanLoRA"), 2]


def test_page_shows_the_values_of_the_graph_that_ran(tmp_path):
    workflow = adapted(seed=7)
    pack = page.write_pack(ROOT, workflow, tmp_path)
    shown = json.loads((pack / "example_workflows" / f"{page.WORKFLOW}.json").read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in shown["nodes"]}
    assert nodes["UNETLoader"]["widgets_values"][0] == "dit.safetensors"
    assert nodes[graph.TEXT_ENCODER]["widgets_values"] == ["umt5.safetensors"] and "CLIPLoader" not in nodes
    assert nodes["KSampler"]["widgets_values"] == [7, "fixed", 8, 4.0, "euler", "simple", 1.0]
    train, settings = nodes["WanTune_TrainWanLoRA"], nodes["WanTune_ObjectiveSettings"]
    assert train["widgets_values"][1:4] == [20, 0, 4]
    assert settings["widgets_values"] == list(graph.PRESERVING.values())
    (link,) = settings["outputs"][0]["links"]
    assert [link, settings["id"], 0, train["id"], len(train["inputs"]) - 1, "WANTUNE_OBJECTIVE"] in shown["links"]
    assert train["inputs"][-1]["name"] == "objective" and train["inputs"][-1]["link"] == link
