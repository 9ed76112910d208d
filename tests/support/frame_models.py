"""Small random models that image-to-video needs beside the transformer: Wan2.2's VAE, and CLIP vision.

ComfyUI fixes the sizes of both, so they are built of its own modules with smaller ones; they stand for what VAELoader
and CLIPVisionLoader give.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def wan22_vae(dim: int = 4):
    """A VAE of Wan2.2 5B; the real one has dim 160."""
    import comfy.ldm.wan.vae2_2
    import comfy.sd

    built = comfy.ldm.wan.vae2_2.WanVAE.__init__

    def smaller(self, **config):
        built(self, **{**config, "dim": dim, "dec_dim": dim})

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(comfy.ldm.wan.vae2_2.WanVAE, "__init__", smaller)
        network = comfy.ldm.wan.vae2_2.WanVAE(z_dim=48, temperal_downsample=[False, True, True])
        return comfy.sd.VAE(sd=_random(network))


def clip_vision(folder: Path, hidden_size: int = 1280, layers: int = 2):
    """A CLIP vision of ViT-H/14's width and tokens; the real one has 32 layers."""
    import comfy.clip_vision

    config = {"hidden_act": "gelu", "hidden_size": hidden_size, "image_size": 224, "intermediate_size": 16,
              "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3,
              "num_hidden_layers": layers, "patch_size": 14, "projection_dim": 16}
    path = folder / "clip_vision.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.inference_mode():
        model = comfy.clip_vision.ClipVisionModel(path)
        model.load_sd(_random(model.model))
        return model


def _random(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict for the module: layers keep the size of their input, norms scale by about 1."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, like in module.state_dict().items():
        value = torch.randn(like.shape, generator=generator)
        if name.endswith("gamma") or (name.endswith("weight") and like.ndim == 1):
            state[name] = 1 + value / 20
        elif like.ndim > 1:
            state[name] = value / like[0].numel() ** 0.5
        else:
            state[name] = value / 50
    return state
