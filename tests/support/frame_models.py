"""Small random models that image-to-video needs beside the transformer: Wan2.2's VAE, and CLIP vision.

ComfyUI fixes the sizes of both, so they are built of its own modules with smaller ones; they stand for what VAELoader
and CLIPVisionLoader give.
"""

from __future__ import annotations

import pytest
import torch

from ..world_nodes.clip_vision import clip_vision, random_state

__all__ = ["clip_vision", "wan22_vae"]


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
        return comfy.sd.VAE(sd=random_state(network))
