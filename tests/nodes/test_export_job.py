"""Export Training Job: it writes the run of this graph, and what the other machine could not have is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.job import folder as jobs
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import AS_SAMPLED, ObjectiveConfig, OptimizerConfig, ValidationConfig
from wantune.trainer.training.run import Run

pytestmark = pytest.mark.usefixtures("comfy")

SETTINGS = {"max_steps": 3, "rank": 2, "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0)}


@pytest.fixture(scope="module")
def world(tmp_path_factory, comfy):
    """Models, a dataset of which one file is held out, and its cache; the model's file is in ComfyUI's lists."""
    import folder_paths

    here = tmp_path_factory.mktemp("here")
    made = trained.world(here)
    made.dataset = scan.scan(DatasetConfig(
        folder=str(here / "pictures"), resolution=64, num_repeats=1, trigger_word="zwx", validation_items=1))
    made.file = here / "models" / "wan small.safetensors"
    made.file.parent.mkdir()
    shutil.copy(tools.WORLD / "dit.safetensors", made.file)
    made.loaded = tools.load_dit(made.file)
    patch = pytest.MonkeyPatch()
    patch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(made.file.parent)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    yield made
    patch.undo()
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def graph(world):
    """A prompt as ComfyUI gives it to the node; the node is 9."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": f"sub\\{world.file.name}"}},
        "2": {"class_type": "WanTune_CacheLatents", "inputs": {"vae": ["3", 0], "clip": ["4", 0]}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
        "4": {"class_type": "CLIPLoader", "inputs": {"clip_name": "umt5.safetensors"}},
        "5": {"class_type": "WanTune_PreviewSettings", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "zwx\nruns", "clip": ["4", 0]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurred", "clip": ["4", 0]}},
        "9": {"class_type": "WanTune_ExportTrainingJob",
              "inputs": {"model": ["1", 0], "cache": ["2", 0], "previews": ["5", 0]}},
    }


@pytest.fixture
def export(world, graph, tmp_path, monkeypatch):
    """Runs the node; gives the job's folder and the text in the node."""
    import folder_paths

    from wantune.nodes import export_job

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    said = []
    monkeypatch.setattr(export_job, "show_text", lambda hidden, text: said.append(text))

    def run(**inputs) -> tuple[Path, str]:
        node, hidden = export_job.ExportTrainingJob, SimpleNamespace(prompt=graph, unique_id="9", extra_pnginfo=None)
        monkeypatch.setattr(node, "hidden", hidden, raising=False)
        with torch.inference_mode():  # as ComfyUI runs nodes
            output = node.execute(**{"dataset": world.dataset, "include_dataset": True, "include_cache": True,
                                     "model": world.loaded, "cache": world.cached, "run_name": "my run", **SETTINGS,
                                     **inputs})
        return Path(output.result[0]), said[-1]

    return run


def test_the_run_of_the_job_is_that_of_the_graph(world, export, tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.nodes.train import TrainWanLoRA

    inputs = {"optimizer": OptimizerConfig(schedule="cosine"), "adapter": {"kind": "rslora"}, "preset": "quick try"}
    place, text = export(**inputs)
    assert text == f"Wrote {place}" and place == tmp_path / "wantune_jobs" / "my run_00001"
    moved = tmp_path / "other machine" / "job"
    shutil.copytree(place, moved)
    job = jobs.read(moved)
    job.check_data()
    ids = job.check_models({"model": world.file})
    denoiser = ComfyDenoiser(world.loaded)
    assert ids == {"model": denoiser.id} and job.settings.models.dtype == "float32"
    assert job.settings.models.model == world.file.name and not job.settings.models.vae
    with torch.inference_mode():
        trained_here = TrainWanLoRA.execute(
            model=world.loaded, cache=world.cached, run_name="another name", **SETTINGS, **inputs)
    settings = job.settings
    with Run(denoiser, job.cached(), settings.run_name, settings.train, tmp_path / "wantune", attempt=settings.attempt,
             restart=settings.restart) as run:
        assert run.is_finished and run.folder.path == Path(trained_here.result[2])


def test_a_second_job_gets_a_number_and_data_may_stay_where_it_is(world, export):
    export()
    place, text = export(include_dataset=False, include_cache=False)
    assert place.name == "my run_00002" and not (place / "data").exists()
    assert "the other machine needs VAE and text encoder" in text
    assert "umt5.safetensors was not found among the files of ComfyUI" in text
    job = jobs.read(place)
    assert job.settings.datasets == world.dataset.configs and job.cached() is None
    assert (job.settings.models.vae, job.settings.models.clip) == ("wan_2.1_vae.safetensors", "umt5.safetensors")


def test_that_the_model_is_loaded_in_another_precision_is_said(world, export, graph):
    for chosen, is_said in (("fp8_e4m3fn", True), ("default", False)):
        graph["1"]["inputs"]["weight_dtype"] = chosen
        assert (f"wan small.safetensors is loaded as {chosen} here" in export()[1]) == is_said


def test_previews_and_their_noise_levels_go_along(world, export, graph):
    from wantune.nodes.media.previewer import sigmas_of
    from wantune.nodes.previews import PreviewSettings

    previews = PreviewSettings.execute(
        positive=world.conditioning("zwx"), negative=world.conditioning(""), vae=world.vae, width=64, height=64,
        frames=5, steps=4, cfg=1.0, shift=3.0, seed=7, every_epochs=0, every_steps=2).result[0]
    given = {"previews": previews, "objective": ObjectiveConfig(timesteps=AS_SAMPLED)}
    found = jobs.read(export(**given)[0]).settings
    plan = found.previews
    assert (plan.prompts, plan.negative) == (("zwx runs",), "blurred")
    assert (plan.width, plan.steps, plan.shift, plan.every_steps) == (64, 4, 3, 2)
    assert found.train.objective.sigmas == plan.sigmas == tuple(round(level, 6) for level in sigmas_of(previews))
    graph["6"]["inputs"]["text"] = ["8", 0]
    place, text = export(**given)
    assert "The prompts of the previews are not known" in text
    assert jobs.read(place).settings.train == found.train and jobs.read(place).settings.previews is None


def test_a_model_with_something_on_it_is_refused(world, export):
    patched = world.loaded.clone()
    key = "diffusion_model.blocks.0.ffn.0.weight"
    patched.add_patches({key: (torch.ones_like(world.loaded.model.state_dict()[key]),)})
    with pytest.raises(UserError, match="A LoRA or another change is on the model wan small.safetensors"):
        export(model=patched)
    with pytest.raises(UserError, match="model and model_low hold the same weights"):
        export(model_low=world.loaded.clone())


def test_a_lora_to_begin_with_begins_there_as_here(world, export, tmp_path):
    from safetensors.torch import load_file

    lora = {f"diffusion_model.blocks.0.ffn.0.{name}": value for name, value in (
        ("lora_A.weight", torch.ones(2, 128)), ("lora_B.weight", torch.ones(512, 2)))}
    found = jobs.read(export(continue_from=lora)[0]).settings
    kept = load_file(found.continue_from)
    assert kept.keys() == lora.keys() and all(torch.equal(kept[name], lora[name]) for name in lora)


def test_a_cache_of_another_dataset_is_refused_and_nothing_is_left(world, export, tmp_path):
    other = scan.scan(DatasetConfig(folder=world.dataset.configs[0].folder, resolution=64, trigger_word="other"))
    with pytest.raises(UserError, match="The cache is that of another dataset"):
        export(dataset=other)
    assert not list((tmp_path / "wantune_jobs").glob("*"))


def test_mistakes_are_answered_before_anything_runs(comfy):
    from wantune.nodes.export_job import ExportTrainingJob

    answer = ExportTrainingJob.validate_inputs
    assert answer(dataset=None, include_dataset=True, include_cache=False, run_name="a", rank=4, model=None) is True
    assert "rank is 0" in answer(include_dataset=True, run_name="a", rank=0)
    assert "run_name" in answer(run_name="a/b")
