"""A CLIP vision of random weights, of ComfyUI's own modules with smaller sizes, which its loader does not know."""

import json
from pathlib import Path

import torch


def clip_vision(folder: Path, hidden_size: int = 1280, layers: int = 2):
    """A CLIP vision of ViT-H/14's width and tokens; the real one has 32 layers.

    Args:
        folder: where its configuration is written, as ComfyUI reads that from a file.
    """
    import comfy.clip_vision

    config = {"hidden_act": "gelu", "hidden_size": hidden_size, "image_size": 224, "intermediate_size": 16,
              "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3,
              "num_hidden_layers": layers, "patch_size": 14, "projection_dim": 16}
    path = folder / "clip_vision.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.inference_mode():
        model = comfy.clip_vision.ClipVisionModel(path)
        model.load_sd(random_state(model.model))
        return model


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
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
