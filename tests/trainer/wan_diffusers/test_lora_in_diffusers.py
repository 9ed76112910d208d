"""A LoRA file of ours in diffusers' own pipelines: no key is unused, and the prediction is that of training."""

import pytest
import torch

from wantune.tests.support import on_diffusers
from wantune.tests.support.adapted import ALPHA, RANK, batch_of
from wantune.tests.support.on_diffusers import CPU, Adapted, relative
from wantune.trainer.lora import file as lora_file
from wantune.trainer.model import text_padding
from wantune.trainer.wan_diffusers.names import comfyui_name


@pytest.mark.parametrize("name", ["Wan2.1 T2V", "Wan2.1 I2V"])
def test_diffusers_reads_what_we_write(name, tmp_path, monkeypatch):
    import diffusers
    from diffusers.utils import logging

    denoiser = on_diffusers.denoiser(name, tmp_path)
    state = {key: 0.5 * value.shape[1] ** -0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(4))
             for key, value in Adapted(denoiser).adapter.state_dict().items()}
    adapted, batch = Adapted(denoiser, state), batch_of(name, (2, 4, 6), (0.3, 0.8), CPU)
    given = denoiser.prepared({"text": batch.text_BLD, **batch.further}, (2, 4, 6))
    with adapted.attached(), torch.no_grad():
        expected = denoiser.velocity(batch.noise_BCFHW, batch.t_B, given)
        with adapted.adapter.switched_off():
            without = denoiser.velocity(batch.noise_BCFHW, batch.t_B, given)
    lora_file.save(tmp_path / "lora.safetensors", lora_file.from_adapter(state, ALPHA), {})

    transformer, told = denoiser._transformer, []
    monkeypatch.setattr(logging.get_logger("diffusers.loaders.lora_base"), "warning", told.append)
    monkeypatch.setattr(logging.get_logger("diffusers.loaders.peft"), "warning", told.append)
    monkeypatch.setattr(logging.get_logger("diffusers.loaders.lora_pipeline"), "warning", told.append)
    kind = diffusers.WanImageToVideoPipeline if "I2V" in name else diffusers.WanPipeline
    nothing = dict.fromkeys(("tokenizer", "text_encoder", "vae", "image_encoder", "image_processor")
                            if "I2V" in name else ("tokenizer", "text_encoder", "vae"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    kind(transformer=transformer, scheduler=scheduler, **nothing).load_lora_weights(
        tmp_path, weight_name="lora.safetensors")
    assert not told
    theirs = {}
    for key, layer in transformer.named_modules():
        if hasattr(layer, "lora_A") and layer.lora_A:
            (adapter,) = layer.lora_A
            a, b = (getattr(layer, kind)[adapter].weight.detach() for kind in ("lora_A", "lora_B"))
            theirs[comfyui_name(key)] = layer.scaling[adapter] * b @ a
    ours = {key.split(".lora_")[0] for key in state}
    assert len(ours) == 20
    for module in ours:
        delta = ALPHA / RANK * state[f"{module}.lora_B.weight"] @ state[f"{module}.lora_A.weight"]
        assert relative(theirs[module], delta) < 1e-6, module
    # diffusers adds zeros for the layers of the image where a file has none
    assert not any(theirs[module].any() for module in theirs.keys() - ours)
    beside = [given["beside"]] if "beside" in given else []
    with torch.no_grad():
        velocity = transformer(torch.cat([batch.noise_BCFHW, *beside], dim=1), 1000 * batch.t_B,
                               text_padding.pad(batch.text_BLD, 512), given.get("clip_fea"), return_dict=False)[0]
    assert relative(velocity, expected) <= 1e-5 and relative(velocity, without) > 0.1
