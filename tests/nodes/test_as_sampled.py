"""timesteps "as sampled": Train Wan LoRA takes the noise levels from the Preview Settings that are connected."""

import json
from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import AS_SAMPLED, ObjectiveConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def world(tmp_path_factory, comfy):
    return trained.world(tmp_path_factory.mktemp("world"))


def previews(world, **changes):
    from wantune.nodes.previews import PreviewSettings

    return PreviewSettings.execute(**{
        "positive": world.conditioning("zwx"), "negative": world.conditioning(""), "vae": world.vae, "width": 64,
        "height": 64, "frames": 5, "steps": 4, "cfg": 1.0, "shift": 5.0, "seed": 7, "every_epochs": 0,
        "every_steps": 0, **changes}).result[0]


@pytest.fixture
def execute(world, tmp_path, monkeypatch):
    """Runs the node for five steps; gives the run's folder."""
    import folder_paths

    from wantune.nodes.train import TrainWanLoRA

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def run(**inputs) -> Path:
        with torch.inference_mode():
            return Path(TrainWanLoRA.execute(**{
                "model": world.model, "cache": world.cached, "run_name": "run", "max_steps": 5, "rank": 2,
                "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0), **inputs}).result[2])

    return run


@pytest.mark.parametrize(("steps", "shift"), [(4, 5.0), (15, 5.0), (20, 8.0), (1, 1.0)])
def test_the_levels_are_those_of_the_sampler(world, steps, shift):
    import comfy.samplers
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    from wantune.nodes.media.previewer import sigmas_of

    (model,) = ModelSamplingSD3().patch(world.model, shift)
    sampler = comfy.samplers.KSampler(model, steps, torch.device("cpu"), "euler", "simple", 1.0, model.model_options)
    found = sigmas_of(previews(world, steps=steps, shift=shift))
    assert found == tuple(sampler.sigmas.tolist()) and len(found) == steps + 1
    if steps == 4:
        assert found == pytest.approx((1.0, 0.9375, 0.833333, 0.625, 0.0), abs=1e-3)


def test_the_node_trains_on_them_and_keeps_them(world, execute):
    objective = ObjectiveConfig(timesteps=AS_SAMPLED, min_t=0.6)
    shown = previews(world)
    folder = execute(previews=shown, objective=objective)
    from wantune.nodes.media.previewer import sigmas_of

    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))["objective"]
    assert kept["sigmas"] == [round(level, 6) for level in sigmas_of(shown)]
    steps = [line for line in map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
             if line["event"] == "StepDone"]
    assert len(steps) == 5 and all(t >= 0.6 for line in steps for t in line["timesteps"])
    assert execute(previews=previews(world, steps=5), objective=objective) != folder, "other levels, another run"
    assert execute(previews=previews(world, every_steps=3), objective=objective) == folder


def test_other_timesteps_do_not_depend_on_previews(world, execute):
    plain = execute(previews=previews(world), objective=ObjectiveConfig())
    assert execute(previews=previews(world, steps=5), objective=ObjectiveConfig()) == plain == execute()


def test_without_previews_nothing_is_computed(world, execute, monkeypatch):
    from wantune.nodes import train

    def never(*_args, **_options):
        raise AssertionError("computed")

    snapshot = tools.Snapshot(world.model)
    monkeypatch.setattr(train, "ComfyDenoiser", never)
    with pytest.raises(UserError, match="timesteps is as sampled, but nothing tells how your graph samples; connect"):
        execute(objective=ObjectiveConfig(timesteps=AS_SAMPLED))
    snapshot.assert_untouched()
