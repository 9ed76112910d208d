"""Wan2.1 (Wan-Video/Wan2.1; the report is arXiv:2503.20314): text, image, first and last frame, and control clips to
video.

What the models take beside the noise is what ComfyUI's nodes give: WanImageToVideo and WanFirstLastFrameToVideo,
WanFunControlToVideo (aigc-apps/VideoX-Fun), WanVaceToVideo (VACE, arXiv:2503.07598).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..settings.data import BOTH_ENDS, CONTROL, CONTROL_AND_FIRST, FIRST_FRAME, NO_FRAME, VACE
from .conditions import CLIP_VISION, CLIP_VISION_ROWS, CONTROLLING, TEXT, WINDOW, ConditionKind, stack
from .family import ModelFamily

# Wan-Video/Wan2.1, wan/modules/vae.py, class WanVAE
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def _without_image(image_CFHW: torch.Tensor) -> torch.Tensor:
    """What is zero once it is normalised, and nowhere known: what ComfyUI gives a model that got no image."""
    latent_CFHW, mask_CFHW = image_CFHW[:len(_MEAN)], image_CFHW[len(_MEAN):]
    return torch.cat([_without_latent(latent_CFHW), torch.ones_like(mask_CFHW)])


def _without_latent(latent_CFHW: torch.Tensor) -> torch.Tensor:
    """Zero once it is normalised: what ComfyUI's nodes give in place of a control clip or a first frame."""
    return torch.tensor(_MEAN).view(-1, 1, 1, 1).expand_as(latent_CFHW).contiguous()


def _stack_of_first(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """clip_vision_BLD of the first frames, also where the last ones are there."""
    return stack([clip_vision_LD[:CLIP_VISION_ROWS] for clip_vision_LD in tensors])


IMAGE = ConditionKind(name="image", folder="images", source=WINDOW, collate=stack, without=_without_image,
                      given=(FIRST_FRAME, BOTH_ENDS))
"""image_BCFHW: 16 channels of ComfyUI's concat_latent_image as it is before normalisation (the latent of the frames
that are given, the others grey), and 4 of its concat_mask (0 where a frame is given)."""

CONTROL_CLIP = ConditionKind(name="control", folder="controls", source=CONTROLLING, collate=stack,
                             without=_without_latent, given=(CONTROL, CONTROL_AND_FIRST))
"""control_BCFHW: the latent of the control clip before normalisation, as WanFunControlToVideo gives it."""

REFERENCE = ConditionKind(name="reference", folder="references", source=WINDOW, collate=stack,
                          without=_without_latent, given=(CONTROL_AND_FIRST,))
"""reference_BC1HW: likewise of the first frame alone, its start_image."""

VACE_CLIP = ConditionKind(name="vace", folder="vace", source=CONTROLLING, collate=stack, without=torch.zeros_like,
                          given=(VACE,))
"""vace_BCFHW: vace_frames of WanVaceToVideo before normalisation, 16 channels of what stays as it is, which is grey
without a mask, and 16 of the control clip. Without it ComfyUI has zeros."""

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
    frame_conditions=(IMAGE, CLIP_VISION, CONTROL_CLIP, REFERENCE, VACE_CLIP),
    frames_given=(NO_FRAME, FIRST_FRAME, BOTH_ENDS),
)
"""1.3B and 14B, and both experts of Wan2.2 T2V A14B, which have its shapes. Its datasets are those of all models with
Wan2.1's VAE."""

WAN21_I2V = replace(
    WAN21_T2V, name="Wan2.1 I2V", frames_given=(FIRST_FRAME, BOTH_ENDS),
    # of both ends it sees the first alone, as in ComfyUI's WanFunInpaintToVideo
    conditions=(TEXT, IMAGE, replace(CLIP_VISION, collate=_stack_of_first)))
"""480p and 720p, which take the first frame, and Fun-InP of Wan2.1, the same network, which takes both ends as well."""

WAN21_FLF2V = replace(WAN21_I2V, name="Wan2.1 FLF2V", frames_given=(BOTH_ENDS,), conditions=(TEXT, IMAGE, CLIP_VISION))

WAN21_FUN_CONTROL = replace(
    WAN21_I2V, name="Wan2.1 Fun-Control", frames_given=(CONTROL_AND_FIRST,),
    conditions=(TEXT, CONTROL_CLIP, REFERENCE, CLIP_VISION))
"""1.3B and 14B, V1.0 and V1.1. Its first frame lies in channels of its own, and it needs CLIP vision of one, for the
reason that I2V does."""

WAN21_VACE = replace(WAN21_T2V, name="Wan2.1 VACE", frames_given=(VACE,), conditions=(TEXT, VACE_CLIP))
"""1.3B and 14B, and both experts of VACE-Fun A14B, which have its shapes. Its further blocks read the control clip and
add what they make of it to the video; the plain ones are trained, as those of text-to-video."""
