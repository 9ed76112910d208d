"""Wan2.1 text-to-video (Wan-Video/Wan2.1; the report is arXiv:2503.20314)."""

from __future__ import annotations

from .conditions import TEXT
from .family import ModelFamily

WAN21_T2V = ModelFamily(
    name="Wan2.1 T2V",
    series="Wan",
    architecture="wan2.1",
    implementation="https://github.com/Wan-Video/Wan2.1",
    fps=16,
    stride_FHW=(4, 8, 8),
    patch_FHW=(1, 2, 2),
    # Wan-Video/Wan2.1, wan/modules/vae.py, class WanVAE
    latent_mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    latent_std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    text_length=512,
    text_width=4096,
    time_scale=1000.0,
    blocks="blocks",
    trained=("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
             "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2"),
    conditions=(TEXT,),
)
