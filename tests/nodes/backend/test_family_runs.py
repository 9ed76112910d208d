"""Each family through a run: trained, stopped, resumed bit for bit, its LoRA applied, and the model as it was."""

from contextlib import closing

import pytest
import torch

from wantune.tests.support import tools, wan_models
from wantune.trainer.runs.events import StepDone
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.run import Run

pytestmark = pytest.mark.usefixtures("comfy")

CONFIG = TrainConfig(
    epochs=4, max_steps=5, learning_rate=1e-2, lora=LoraConfig(rank=4, alpha=4), batch_size=2,
    validation=ValidationConfig(every_minutes=0, evaluate_epochs=0))

SIZES = [(3, 4, 6), (3, 4, 6), (1, 6, 4)]
"""Latent frames, rows and columns: two clips and a picture."""


def train(model, dataset, folder, stop_after: int = 0) -> tuple[Run, list[float]]:
    """A run to its end, or to a Stop after so many steps; and its losses."""
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    losses = []
    with torch.inference_mode(), torch.inference_mode(False):
        run = Run(ComfyDenoiser(model), dataset, "run", CONFIG, folder)
        with closing(run.events()) as events:
            for event in events:
                if isinstance(event, StepDone):
                    losses.append(event.loss)
                    run.stop = event.step == stop_after
    return run, losses


@pytest.mark.parametrize("name", wan_models.NAMES)
def test_a_run_goes_on_bit_for_bit_and_its_lora_changes_the_video(name, tmp_path):
    from wantune.nodes.backend import applying

    model = wan_models.load(name)
    snapshot = tools.Snapshot(model)
    dataset = wan_models.dataset(name, tmp_path, SIZES)
    whole, losses = train(model, dataset, tmp_path / "whole")
    _, before = train(model, dataset, tmp_path / "stopped", stop_after=2)
    resumed, after = train(model, dataset, tmp_path / "stopped")
    assert len(losses) == 5 and before + after == losses
    assert whole.lora.keys() == resumed.lora.keys()
    assert all(torch.equal(whole.lora[key], resumed.lora[key]) for key in whole.lora)
    snapshot.assert_untouched()
    assert f"{name} model" in whole.base_model or name == "Wan2.1 T2V"
    reading = applying.read(model, whole.lora)
    assert len(reading.fit.matched) == 20 and not reading.notes
    tuned = model.clone()
    tuned.add_patches(reading.patches)
    assert not torch.equal(tools.sample(tuned), snapshot.video)
    assert torch.equal(tools.sample(model), snapshot.video)
