"""Loads small files of the models that read frames, whose sizes the stock loaders fix: Wan2.2's VAE and CLIP vision."""

import json
import tempfile
from pathlib import Path
from unittest import mock

HEADS = 16
"""Of CLIP vision, in which no tensor has this number as a size."""


def small_wan22_vae(state_dict: dict):
    """A VAE of Wan2.2 5B of any width, as VAELoader gives it."""
    import comfy.ldm.wan.vae2_2
    import comfy.sd

    dim = len(state_dict["encoder.conv1.weight"])
    built = comfy.ldm.wan.vae2_2.WanVAE.__init__

    def smaller(self, **config):
        built(self, **{**config, "dim": dim, "dec_dim": dim})

    with mock.patch.object(comfy.ldm.wan.vae2_2.WanVAE, "__init__", smaller):
        return comfy.sd.VAE(sd=state_dict)


def load_small_clip_vision(path: Path | str):
    """Load a CLIP vision of ViT-H/14's form and any size, as CLIPVisionLoader gives it."""
    import comfy.utils

    state_dict = comfy.utils.load_torch_file(str(path), safe_load=True)
    layer = "vision_model.encoder.layers.0"
    hidden_size = len(state_dict["vision_model.embeddings.class_embedding"])
    model = empty_clip_vision(
        hidden_size=hidden_size, intermediate_size=len(state_dict[f"{layer}.mlp.fc1.weight"]),
        num_hidden_layers=sum(key.endswith("layer_norm1.weight") for key in state_dict),
        projection_dim=len(state_dict["visual_projection.weight"]))
    model.load_sd(state_dict)
    return model


def empty_clip_vision(**sizes: int):
    """One without weights; the sizes are those of ComfyUI's clip_vision_config_h.json."""
    import comfy.clip_vision

    config = {"hidden_act": "gelu", "image_size": 224, "model_type": "clip_vision_model", "num_channels": 3,
              "num_attention_heads": HEADS, "patch_size": 14, **sizes}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip_vision.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        return comfy.clip_vision.ClipVisionModel(path)
