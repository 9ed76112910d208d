"""Small random models that image-to-video needs beside the transformer: Wan2.2's VAE, and CLIP vision.

ComfyUI fixes the sizes of both, so tests/world_nodes loads them; they stand for what VAELoader and CLIPVisionLoader
give.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ..world_nodes import frame_models as loaders


def wan22_vae(dim: int = 4):
    """A VAE of Wan2.2 5B; the real one has dim 160."""
    with torch.inference_mode():
        return loaders.small_wan22_vae(_wan22_vae_weights(dim))


def write_wan22_vae(path: Path, dim: int = 4) -> Path:
    """The file of such a VAE."""
    save_file(_wan22_vae_weights(dim), path)
    return path


def clip_vision(folder: Path, hidden_size: int = 1280, layers: int = 2):
    """A CLIP vision of ViT-H/14's width and tokens, from a file in the folder; the real one has 32 layers."""
    path = write_clip_vision(folder / "clip_vision.safetensors", hidden_size, layers)
    with torch.inference_mode():
        return loaders.load_small_clip_vision(path)


def write_clip_vision(path: Path, hidden_size: int = 1280, layers: int = 2) -> Path:
    """The file of such a CLIP vision."""
    model = loaders.empty_clip_vision(
        hidden_size=hidden_size, intermediate_size=16, num_hidden_layers=layers, projection_dim=16)
    save_file(_random(model.model), path)
    return path


def _wan22_vae_weights(dim: int) -> dict[str, torch.Tensor]:
    import comfy.ldm.wan.vae2_2

    return _random(comfy.ldm.wan.vae2_2.WanVAE(
        z_dim=48, dim=dim, dec_dim=dim, temperal_downsample=[False, True, True]))


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
