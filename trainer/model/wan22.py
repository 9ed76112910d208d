"""Wan2.2 (Wan-Video/Wan2.2): image-to-video and Fun-Control A14B, and TI2V 5B with a VAE of its own.

Text-to-video A14B has the shapes of Wan2.1's 14B and is its family (wan21.py).
"""

from __future__ import annotations

from dataclasses import replace

from ..settings.data import CONTROL, CONTROL_AND_FIRST, FIRST_FRAME, NO_FRAME
from .conditions import KNOWN, TEXT
from .wan21 import CONTROL_CLIP, IMAGE, REFERENCE, WAN21_I2V, WAN21_T2V

_IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.2"

WAN22_I2V = replace(WAN21_I2V, name="Wan2.2 I2V", architecture="wan2.2", implementation=_IMPLEMENTATION,
                    conditions=(TEXT, IMAGE))
"""Each expert of I2V A14B: Wan2.1's VAE, and no CLIP vision."""

WAN22_FUN_CONTROL = replace(
    WAN22_I2V, name="Wan2.2 Fun-Control", frames_given=(CONTROL, CONTROL_AND_FIRST),
    conditions=(TEXT, CONTROL_CLIP, replace(REFERENCE, is_frame=True, is_optional=True)))
"""Each expert of Fun-Control A14B. The first frame is its ref_image, which comes before the video as a frame of tokens;
where it is dropped it is zero, as VideoX-Fun drops it (scripts/wan2.2_fun/train_control_lora.py)."""

WAN22_5B = replace(
    WAN21_T2V,
    name="Wan2.2 5B",
    architecture="wan2.2",
    implementation=_IMPLEMENTATION,
    fps=24,
    stride_FHW=(4, 16, 16),
    # Wan-Video/Wan2.2, wan/modules/vae2_2.py, class Wan2_2_VAE
    latent_mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
                 -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
                 -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
                 -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
                 -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
                 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    latent_std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
                0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
                0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
                0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
                0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
                0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    conditions=(TEXT, KNOWN),
    frame_conditions=(KNOWN,),
    frames_given=(NO_FRAME, FIRST_FRAME),
)
"""Text-to-video, and image-to-video by giving the first latent frame clean (KNOWN)."""
