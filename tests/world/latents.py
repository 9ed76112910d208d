"""Scenes as latents of the small world's VAE: drawn and encoded once, in shards, kept in the working folder."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from . import glyphs, scenes

VAE_DIM = 8


class Vae:
    """ComfyUI's Wan VAE with a file's weights; latents are normalised as the transformer sees them."""

    def __init__(self, path: Path):
        import comfy.latent_formats
        import comfy.ldm.wan.vae

        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        self.model = comfy.ldm.wan.vae.WanVAE(
            dim=tensors["encoder.conv1.weight"].shape[0], z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
            attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0,
        )
        self.model.load_state_dict(tensors)
        self.model.requires_grad_(False)
        self.format = comfy.latent_formats.Wan21()

    @torch.no_grad()
    def encode(self, pixels_BFHW3: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(pixels_BFHW3).float().movedim(-1, 1) / 127.5 - 1
        return self.format.process_in(self.model.encode(pixels))

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> np.ndarray:
        pixels = self.model.decode(self.format.process_out(latent_BCFHW)).clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().byte().movedim(1, -1).numpy()


@dataclass(frozen=True, slots=True)
class Shard:
    scenes: list[scenes.Scene]
    latent_NCFHW: torch.Tensor
    """float16"""


def shard(folder: Path, vae_path: Path, seed: int, number: int, moves: bool, size: int) -> Shard:
    """Shard `number` of stills or of clips: from its file, or drawn, encoded and written there."""
    rng = np.random.default_rng([seed, number, int(moves)])
    shapes = glyphs.glyphs()
    drawn = [scenes.random_scene(shapes, moves, rng) for _ in range(size)]
    path = folder / f"{'clips' if moves else 'stills'}-{seed}-{size}-{number:03d}.pt"
    if not path.exists():
        vae = Vae(vae_path)
        parts = [
            vae.encode(np.stack([scenes.draw(scene) for scene in drawn[start : start + 16]])).half()
            for start in range(0, size, 16)
        ]
        written_whole(path, torch.cat(parts))
    return Shard(drawn, torch.load(path))


def written_whole(path: Path, content) -> None:
    """torch.save that a kill leaves undone or done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(content, part)
    os.replace(part, path)
