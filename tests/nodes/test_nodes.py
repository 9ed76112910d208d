"""The public contract of the nodes, and the sentences they answer a mistake with before anything runs."""

import asyncio
import logging
import os
from dataclasses import asdict

import pytest
import torch

from wantune.demo import graph as graphs
from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.presets import PRESETS
from wantune.trainer.settings.training import LoraConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("comfy")

CONTRACT = {
    "WanTune_LoadDataset": (
        {"folder": "", "trigger_word": "", "resolution": 512, "frame_buckets": "1, 33", "num_repeats": 10,
         "validation_items": 0}, ["WANTUNE_DATASET", "STRING"], "Load Dataset"),
    "WanTune_DatasetSettings": (
        {"more_resolutions": "", "prepend_trigger": True, "caption_fallback": "trigger word", "caption_dropout": 0.0,
         "shuffle_tags": False, "masks": "folder", "alpha_color": "white"}, ["WANTUNE_DATASET_SETTINGS"],
        "Dataset Settings"),
    "WanTune_JoinDatasets": ({"dataset_1": None, "dataset_2": None}, ["WANTUNE_DATASET", "STRING"], "Join Datasets"),
    "WanTune_CacheLatents": ({"dataset": None, "vae": None, "clip": None}, ["WANTUNE_CACHE"], "Cache Latents"),
    "WanTune_PruneCache": ({"max_age_days": 30.0, "max_size_gb": 50.0}, ["STRING"], "Prune Cache"),
    "WanTune_TrainWanLoRA": (
        {"model": None, "cache": None, "run_name": "my_lora", "epochs": 20, "max_steps": 0, "batch_size": 1,
         "learning_rate": 1e-4, "rank": 32, "alpha": 32, "seed": 0},
        ["LORA_MODEL", "LOSS_MAP", "STRING", "LORA_MODEL", "STRING"], "Train Wan LoRA"),
    "WanTune_AdapterSettings": ({"kind": "lora"}, ["WANTUNE_ADAPTER"], "Adapter Settings"),
    "WanTune_OptimizerSettings": ({"name": "adamw"}, ["WANTUNE_OPTIMIZER"], "Optimizer Settings"),
    "WanTune_ObjectiveSettings": (
        {"timesteps": "logit_normal"}, ["WANTUNE_OBJECTIVE"], "Timestep and Loss Settings"),
    "WanTune_KeepSettings": (
        {"evaluate_epochs": 1}, ["WANTUNE_VALIDATION"], "Validation and Checkpoint Settings"),
    "WanTune_PreviewSettings": (
        {"positive": None, "negative": None, "vae": None, "width": 448}, ["WANTUNE_PREVIEWS"], "Preview Settings"),
    "WanTune_MemorySettings": (
        {"whole_blocks": -1, "segments": "auto", "keep_attention": "auto", "inputs_in_ram": "auto", "keep_free": 0.0},
        ["WANTUNE_MEMORY"], "Memory Settings"),
    "WanTune_LoadRunLoRA": ({"run": "", "checkpoint": "best"}, ["LORA_MODEL", "STRING"], "Load Run LoRA"),
    "WanTune_SaveLoRA": ({"lora": None, "filename": "wantune/my_lora"}, ["STRING", "STRING"], "Save LoRA"),
    "WanTune_ApplyLoRA": ({"model": None, "lora": None, "strength": 1.0}, ["MODEL", "MODEL"], "Apply LoRA"),
    "WanTune_CompareVideos": ({"base": None, "tuned": None, "fps": 16}, ["VIDEO"], "Compare Videos"),
    "WanTune_CompareCheckpoints": (
        {"model": None, "run": "", "positive": None, "negative": None, "vae": None, "checkpoints": "all",
         "strengths": "1.0", "include_base": True, "width": 448, "height": 256, "frames": 17, "seed": 0, "steps": 30,
         "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"}, ["VIDEO", "IMAGE"], "Compare Checkpoints"),
    "WanTune_ExportTrainingJob": (
        {"dataset": None, "include_dataset": True, "include_cache": True, "cache": None, "model": None,
         "run_name": "my_lora", "epochs": 20}, ["STRING"], "Export Training Job"),
}


@pytest.fixture(scope="module")
def nodes(comfy) -> dict:
    from wantune.nodes import WanTuneExtension

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(WanTuneExtension().get_node_list())}


def test_the_extension_offers_exactly_the_nodes_of_the_contract(nodes):
    assert list(nodes) == list(CONTRACT)


@pytest.mark.parametrize("node_id", CONTRACT)
def test_names_defaults_and_outputs_are_those_of_the_contract(nodes, node_id):
    inputs, outputs, display_name = CONTRACT[node_id]
    schema = nodes[node_id].GET_SCHEMA()
    declared = {each.id: each for each in schema.inputs}
    assert list(declared)[: len(inputs)] == list(inputs), "the contract's inputs come first, in its order"
    for name, default in inputs.items():
        assert getattr(declared[name], "default", None) == default, name
    assert [each.get_io_type() for each in schema.outputs] == outputs
    assert schema.display_name == display_name and schema.category == "WanTune"


@pytest.mark.parametrize("node_id", CONTRACT)
def test_every_input_and_output_explains_itself(nodes, node_id):
    schema = nodes[node_id].GET_SCHEMA()
    assert schema.description
    for each in [*schema.inputs, *schema.outputs]:
        assert each.tooltip and len(each.tooltip) > 15, each.id


def test_further_inputs_are_optional(nodes):
    for node_id, (inputs, _, _) in CONTRACT.items():
        if "Settings" in node_id:  # all their inputs are their own
            continue
        for each in nodes[node_id].GET_SCHEMA().inputs[len(inputs):]:
            assert each.optional, f"{node_id}.{each.id}"


def test_the_seed_stays_when_the_page_queues_again(nodes):
    (seed,) = [each for each in nodes["WanTune_TrainWanLoRA"].GET_SCHEMA().inputs if each.id == "seed"]
    assert seed.as_dict()["control_after_generate"] is False


def dataset_inputs(**changes) -> dict:
    return {"folder": "pictures", "trigger_word": "", "resolution": 64, "frame_buckets": "1", "num_repeats": 1,
            "validation_items": 0, **changes}


@pytest.fixture
def input_folder(tmp_path, monkeypatch):
    """ComfyUI's input folder, with pictures in it."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return tools.write_pictures(tmp_path / "pictures")


def test_a_folder_is_absolute_or_lies_in_the_input_folder(nodes, input_folder):
    node = nodes["WanTune_LoadDataset"]
    assert node.validate_inputs(**dataset_inputs()) is True
    assert node.validate_inputs(**dataset_inputs(folder=str(input_folder))) is True
    assert node.validate_inputs(**dataset_inputs(folder=f'"{input_folder}"')) is True
    assert node.validate_inputs(**dataset_inputs(folder=None)) is True, "linked: not known yet"


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"folder": "nowhere"}, "nowhere does not exist; give the folder"),
    ({"folder": " "}, "folder is empty; give the folder"),
    ({"frame_buckets": "1, 30"}, "frame_buckets has 30"),
    ({"validation_items": -1}, "validation_items is -1"),
    ({"extraction": "end"}, "extraction is 'end'; choose"),
])
def test_mistakes_are_answered_before_anything_runs(nodes, input_folder, changes, sentence):
    assert sentence in nodes["WanTune_LoadDataset"].validate_inputs(**dataset_inputs(**changes))


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"alpha_color": "wite"}, "alpha_color is 'wite'"), ({"more_resolutions": "a"}, "more_resolutions has 'a'"),
    ({"more_resolutions": "9999"}, "resolution is 9999"), ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
    ({"masks": "none", "alpha_color": None}, True),
    ({"class_word": "a person", "preserve_prompts": "a dog\n\na cat"}, True),
    ({"preserve_prompts": "a\ud800"}, r"preserve_prompts has 'a\ud800', which holds half a character"),
])
def test_mistakes_in_the_settings_are_answered_before_anything_runs(nodes, changes, sentence):
    found = nodes["WanTune_DatasetSettings"].validate_inputs(**changes)
    assert found is True if sentence is True else sentence in found


@pytest.mark.parametrize(("name", "sentence"), [
    ("", "give the run a name"), ("a/b", "'/'"), ("..", "give the run a name"), ("x", True),
])
def test_run_names_are_checked_before_anything_runs(nodes, name, sentence):
    found = nodes["WanTune_TrainWanLoRA"].validate_inputs(run_name=name, model=None, cache=None)
    assert found is True if sentence is True else sentence in found


def configured(monkeypatch, nodes, **inputs):
    """The TrainConfig with which Train Wan LoRA would train."""
    from wantune.nodes import train

    seen = []
    monkeypatch.setattr(train, "train", lambda *given: (seen.extend(given), ({}, [], "run"))[1])
    nodes["WanTune_TrainWanLoRA"].execute(model=None, cache=None, run_name="x", **inputs)
    return next(each for each in seen if isinstance(each, TrainConfig))


def test_a_preset_fills_in_what_is_not_given_and_what_is_given_wins_and_is_said(nodes, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "wantune")
    for preset, values in PRESETS.items():
        found = configured(monkeypatch, nodes, preset=preset)
        assert {**asdict(found), **asdict(found.lora)}.items() >= values.items()
    assert "overruled" not in caplog.text
    found = configured(monkeypatch, nodes, preset="quick try", epochs=3, rank=16)
    assert (found.epochs, found.max_steps, found.lora.rank, found.learning_rate) == (3, 300, 16, 2e-4)
    assert 'The preset "quick try" is overruled by what is set beside it: epochs 3 (preset 100).' in caplog.text
    assert configured(monkeypatch, nodes) == configured(monkeypatch, nodes, preset="custom") == TrainConfig()


def test_an_unknown_preset_is_refused(nodes):
    found = nodes["WanTune_TrainWanLoRA"].validate_inputs(run_name="x", preset="slow try", model=None, cache=None)
    assert found.startswith("preset is 'slow try'; choose one of custom, seed article, person, pictures")


def test_a_changed_file_is_noticed_and_an_unchanged_folder_is_not(nodes, input_folder):
    node = nodes["WanTune_LoadDataset"]
    before = node.fingerprint_inputs(**dataset_inputs())
    assert node.fingerprint_inputs(**dataset_inputs()) == before
    (input_folder / "coffee.txt").write_text("something else entirely")
    assert node.fingerprint_inputs(**dataset_inputs()) != before


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"lora": {"rank": 0}}, "rank is 0; choose 1 to 1024"), ({"lora": {"alpha": 0}}, "alpha is 0"),
    ({"epochs": 0}, "epochs is 0"), ({"batch_size": -1}, "batch_size is -1; choose 0 or more"),
    ({"max_steps": -1}, "max_steps is -1"),
    ({"learning_rate": 0}, "learning_rate is 0"), ({"learning_rate": float("nan")}, "learning_rate is nan"),
])
def test_settings_out_of_range_are_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        TrainConfig(**{**settings, "lora": LoraConfig(**settings.get("lora", {}))})


@pytest.fixture
def loras(tmp_path, monkeypatch):
    return tools.loras_folder(tmp_path / "loras", monkeypatch)


def random_lora(model, scale: float = 0.1) -> dict[str, torch.Tensor]:
    from wantune.nodes.backend.denoiser import linear_sizes
    from wantune.trainer.lora import file as lora_file

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (rows, columns) in linear_sizes(model).items():
        if name.startswith("blocks."):
            state[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * scale
            state[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * scale
    return lora_file.LoraStateDict(lora_file.from_adapter(state, 4), {"wantune.step": "3"})


def test_every_save_is_a_new_file_that_comfyuis_lists_show(nodes, loras, tmp_path):
    import folder_paths
    from safetensors import safe_open

    model = tools.load_dit(tools.random_dit(tmp_path))
    lora = random_lora(model)
    outputs = [nodes["WanTune_SaveLoRA"].execute(lora, "wantune/mine", model) for _ in range(2)]
    names = [output.result[0] for output in outputs]
    assert names == [os.path.join("wantune", f"mine_0000{number}.safetensors") for number in (1, 2)]
    assert "20 of 20 modules matched" in str(outputs[0].ui.as_dict())
    assert set(folder_paths.get_filename_list("loras")) == set(names)
    with safe_open(loras / "wantune" / "mine_00001.safetensors", "pt") as file:
        assert len(file.keys()) == 60 and file.metadata()["wantune.step"] == "3"


@pytest.mark.parametrize("filename", ["../outside", "/tmp/outside", "a/../../outside", "", "."])
def test_no_name_leads_out_of_the_loras_folder(nodes, loras, tmp_path, filename):
    model = tools.load_dit(tools.random_dit(tmp_path))
    with pytest.raises(UserError, match="leads out of the loras folder"):
        nodes["WanTune_SaveLoRA"].execute(random_lora(model), filename)
    assert not list(loras.rglob("*.safetensors"))


def test_apply_takes_a_state_dict_a_saved_name_or_a_file_and_all_give_the_same_video(nodes, loras, tmp_path):
    model = tools.load_dit(tools.random_dit(tmp_path))
    lora = random_lora(model)
    name = nodes["WanTune_SaveLoRA"].execute(lora, "mine").result[0]
    base = tools.sample(model)
    node = nodes["WanTune_ApplyLoRA"]
    outputs = [node.execute(model, 1.0, lora=dict(lora)), node.execute(model, 1.0, lora=name),
               node.execute(model, 1.0, file=name)]
    videos = [tools.sample(output.result[0]) for output in outputs]
    assert torch.equal(videos[0], videos[1]) and torch.equal(videos[0], videos[2])
    assert not torch.equal(videos[0], base)
    assert "20 of 20 modules matched" in str(outputs[0].ui.as_dict())
    assert torch.equal(tools.sample(node.execute(model, 0.0, lora=lora).result[0]), base)


def test_comfyuis_own_loader_reads_what_we_save_to_the_same_video(nodes, loras, tmp_path):
    import nodes as comfy_nodes

    model = tools.load_dit(tools.random_dit(tmp_path))
    lora = random_lora(model)
    name = nodes["WanTune_SaveLoRA"].execute(lora, "mine").result[0]
    ours = tools.sample(nodes["WanTune_ApplyLoRA"].execute(model, 0.7, lora=lora).result[0])
    with torch.inference_mode():
        (theirs,) = comfy_nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 0.7)
    assert torch.equal(tools.sample(theirs), ours)


def test_a_lora_comfyui_cannot_load_is_applied_all_the_same(nodes, loras, tmp_path):
    model = tools.load_dit(tools.random_dit(tmp_path))
    lora = random_lora(model)
    bare = {key.removeprefix("diffusion_model."): value for key, value in lora.items() if "alpha" not in key}
    node = nodes["WanTune_ApplyLoRA"]
    output = node.execute(model, 1.0, lora=bare)
    assert torch.equal(tools.sample(output.result[0]), tools.sample(node.execute(model, 1.0, lora=lora).result[0]))


def test_a_lora_for_another_width_is_refused_by_save_and_apply(nodes, loras, tmp_path):
    wide = random_lora(tools.load_dit(tools.random_dit(tmp_path, dim=256)))
    model = tools.load_dit(tools.random_dit(tmp_path))
    for refuse in (lambda: nodes["WanTune_ApplyLoRA"].execute(model, 1.0, lora=wide),
                   lambda: nodes["WanTune_SaveLoRA"].execute(wide, "x", model)):
        with pytest.raises(UserError, match="made for a Wan model of width 256 with 2 blocks, the model is "
                                            "a Wan model of width 128 with 2 blocks"):
            refuse()
    assert not list(loras.rglob("*.safetensors"))


def test_apply_without_any_lora_says_so(nodes, tmp_path):
    with pytest.raises(UserError, match="connect one, or choose a file"):
        nodes["WanTune_ApplyLoRA"].execute(None, 1.0)
    with pytest.raises(UserError, match="There is no LoRA 'gone.safetensors'"):
        nodes["WanTune_ApplyLoRA"].execute(None, 1.0, lora="gone.safetensors")


def test_the_demo_sets_every_widget_of_the_settings_that_it_adds():
    from wantune.nodes.settings import ObjectiveSettings

    assert list(graphs.PRESERVING) == [each.id for each in ObjectiveSettings.define_schema().inputs]
