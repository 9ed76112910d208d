"""batch_size 0 in Train Wan LoRA: taken from an API prompt and from the page, chosen, told, and kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.settings.training import TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def world(tmp_path_factory, comfy):
    """With each picture four times an epoch."""
    found = trained.world(tmp_path_factory.mktemp("world"))
    found.cached = replace(found.cached, samples=tuple(replace(each, repeats=4) for each in found.cached.samples))
    return found


@pytest.fixture
def execute(world, tmp_path, monkeypatch):
    """Runs the node for three steps; gives its outputs and what was said."""
    import folder_paths

    from wantune.nodes import train

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    watches = []

    def watch(_hidden):
        watches.append(tools.Watch())
        return watches[-1]

    monkeypatch.setattr(train, "Live", watch)

    def run(**inputs):
        with torch.inference_mode():
            result = train.TrainWanLoRA.execute(**{
                "model": world.model, "cache": world.cached, "run_name": "run", "max_steps": 3, "rank": 2,
                "preset": "custom", "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0),
                **inputs}).result
        return result, watches[-1]

    return run


def test_the_widget_goes_down_to_zero_and_no_further(comfy):
    from wantune.nodes.train import TrainWanLoRA

    (widget,) = [each for each in TrainWanLoRA.GET_SCHEMA().inputs if each.id == "batch_size"]
    assert widget.min == 0 and widget.default == 1
    assert TrainWanLoRA.validate_inputs(run_name="run", batch_size=0) is True
    assert TrainWanLoRA.validate_inputs(run_name="run", batch_size=-1) == "batch_size is -1; choose 0 or more."


def test_the_node_chooses_says_and_keeps_it(world, execute):
    from wantune.nodes.previews import PreviewSettings

    previews = PreviewSettings.execute(
        positive=world.conditioning("zwx"), negative=world.conditioning(""), vae=world.vae, width=64, height=64,
        frames=5, steps=2, cfg=1.0, shift=5.0, seed=7, every_epochs=0, every_steps=0).result[0]
    snapshot = tools.Snapshot(world.model)
    (_, losses, folder, *_), watch = execute(batch_size=0, previews=previews)
    kept = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    number = kept["chosen_batch_size"]
    told = f"batch_size 0: {number} a step, "
    assert number > 1 and kept["batch_size"] == 0
    assert any(said.startswith(told) for said in watch.said) and any(note.startswith(told) for note in watch.notes)
    steps = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(len(step["timesteps"]) for step in steps if step["event"] == "StepDone") == number
    snapshot.assert_untouched()
    (_, again, same_folder, *_), watch = execute(batch_size=0, previews=previews)
    assert again["loss"] == losses["loss"] and same_folder == folder and not watch.events
    assert any(said.startswith(f"{told}as when the run was begun") for said in watch.said)
    assert execute(batch_size=number)[0][2] != folder, "a run in which it is set is another one"


def test_all_presets_leave_it_as_it_is():
    from wantune.trainer.settings.presets import PRESETS

    assert all(preset["batch_size"] == TrainConfig().batch_size == 1 for preset in PRESETS.values())
