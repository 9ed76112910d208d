"""The same run on diffusers and on ComfyUI: the same data, settings and tiny weights give the same losses and LoRA."""

import pytest
import torch

from wantune.tests.support import on_diffusers, wan_models
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")

TOLERANCE = 1e-5
"""Relative; measured 2e-7 for losses, 4e-7 for the matrices B."""

STEPS = 50

CONFIG = TrainConfig(
    epochs=STEPS, max_steps=STEPS, learning_rate=1e-3, lora=LoraConfig(rank=4, alpha=4), batch_size=2,
    validation=ValidationConfig(every_minutes=0, evaluate_epochs=0))

SIZES = [(3, 4, 6), (3, 4, 6), (1, 6, 4)]
"""Latent frames, rows and columns: two clips and a picture."""


@pytest.mark.parametrize("name", ["Wan2.1 T2V", "Wan2.1 I2V"])
def test_losses_and_adapter_are_those_of_comfyui(name, tmp_path, record_property):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    dataset = wan_models.dataset(name, tmp_path, SIZES)
    model = wan_models.load(name, load_as=torch.float32)
    with torch.inference_mode():
        theirs = ComfyDenoiser(model)
        there, losses_there = on_diffusers.trained(theirs, dataset, CONFIG, tmp_path / "comfyui")
    ours = on_diffusers.denoiser(name, tmp_path)
    snapshot = on_diffusers.Snapshot(ours._transformer)
    here, losses_here = on_diffusers.trained(ours, dataset, CONFIG, tmp_path / "diffusers")
    assert len(losses_here) == len(losses_there) == STEPS
    worst = max(abs(a - b) / b for a, b in zip(losses_here, losses_there, strict=True))
    record_property("loss", worst)
    assert worst <= TOLERANCE
    assert list(here.lora) == list(there.lora)
    keys = [key for key in there.lora if not key.endswith(".alpha")]
    assert len(keys) == 2 * 10 * 2
    errors = {kind: on_diffusers.relative(*(torch.cat([lora[key].flatten() for key in keys if kind in key])
                                            for lora in (here.lora, there.lora))) for kind in ("lora_A", "lora_B")}
    record_property("adapter", errors)
    assert max(errors.values()) <= TOLERANCE
    assert all(here.lora[key].any() for key in keys)
    assert here.base_model == there.base_model
    snapshot.assert_untouched()
