"""Wan2.1 (Wan-Video/Wan2.1; the report is arXiv:2503.20314): text, image, and first and last frame to video.

What the image-to-video models take beside the noise is what ComfyUI's WanImageToVideo and WanFirstLastFrameToVideo
give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..settings.data import BOTH_ENDS, CONDITIONS, FIRST_FRAME
from .conditions import CLIP_VISION, CLIP_VISION_ROWS, TEXT, WINDOW, ConditionKind, stack
from .family import ModelFamily

# Wan-Video/Wan2.1, wan/modules/vae.py, class WanVAE
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def _without_image(image_CFHW: torch.Tensor) -> torch.Tensor:
    """What is zero once it is normalised, and nowhere known: what ComfyUI gives a model that got no image."""
    nothing_CFHW = torch.ones_like(image_CFHW)
    nothing_CFHW[:len(_MEAN)] = torch.tensor(_MEAN).view(-1, 1, 1, 1)
    return nothing_CFHW


def _stack_of_first(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """clip_vision_BLD of the first frames, also where the last ones are there."""
    return stack([clip_vision_LD[:CLIP_VISION_ROWS] for clip_vision_LD in tensors])


IMAGE = ConditionKind(name="image", folder="images", source=WINDOW, collate=stack, without=_without_image)
"""image_BCFHW: 16 channels of ComfyUI's concat_latent_image as it is before normalisation (the latent of the frames
that are given, the others grey), and 4 of its concat_mask (0 where a frame is given)."""

WAN21_T2V = ModelFamily(
    name="Wan2.1 T2V",
    series="Wan",
    architecture="wan2.1",
    implementation="https://github.com/Wan-Video/Wan2.1",
    fps=16,
    stride_FHW=(4, 8, 8),
    patch_FHW=(1, 2, 2),
    latent_mean=_MEAN,
    latent_std=_STD,
    text_length=512,
    text_width=4096,
    time_scale=1000.0,
    blocks="blocks",
    trained=("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
             "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2"),
    conditions=(TEXT,),
    frame_conditions=(IMAGE, CLIP_VISION),
    frames_given=CONDITIONS,
)
"""1.3B and 14B, and both experts of Wan2.2 T2V A14B, which have its shapes. Its datasets are those of all models with
Wan2.1's VAE."""

WAN21_I2V = replace(
    WAN21_T2V, name="Wan2.1 I2V", frames_given=(FIRST_FRAME, BOTH_ENDS),
    # of both ends it sees the first alone, as in ComfyUI's WanFunInpaintToVideo
    conditions=(TEXT, IMAGE, replace(CLIP_VISION, collate=_stack_of_first)))
"""480p and 720p, which take the first frame, and Fun-InP of Wan2.1, the same network, which takes both ends as well."""

WAN21_FLF2V = replace(WAN21_I2V, name="Wan2.1 FLF2V", frames_given=(BOTH_ENDS,), conditions=(TEXT, IMAGE, CLIP_VISION))
