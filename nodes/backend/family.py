"""Which model family a loaded MODEL is, and whether this ComfyUI can be trained through.

A family is recognised by its network's class, type and number of input channels, never by a file's name.
"""

from __future__ import annotations

import comfy.ldm.wan.model
import comfyui_version
import torch

from ...trainer.base.errors import UserError
from ...trainer.model.family import ModelFamily
from ...trainer.model.wan21 import WAN21_T2V


def family_of(model) -> ModelFamily:
    """The family of a MODEL.

    Raises:
        UserError: a model of no known family, or a version of ComfyUI whose kernels for Wan have no backward.
    """
    _check_version(comfyui_version.__version__)
    network = model.model.diffusion_model
    if not isinstance(network, comfy.ldm.wan.model.WanModel):
        raise UserError(f"The model is a {type(model.model).__name__}, not Wan; load a Wan2.1 text-to-video model.")
    channels, latent = network.patch_embedding.weight.shape[1], model.model.latent_format.latent_channels
    is_plain = type(network) is comfy.ldm.wan.model.WanModel and network.model_type == "t2v"
    if not is_plain or not channels == latent == WAN21_T2V.latent_channels:
        raise UserError(f"The model is a {type(network).__name__} ({network.model_type}), {_what(network, latent)}; "
                        "this version trains Wan2.1 text-to-video models only.")
    return WAN21_T2V


def _what(network: torch.nn.Module, latent: int) -> str:
    """Which Wan a network is that is not trained, as ComfyUI tells them apart (comfy/model_detection.py)."""
    channels = network.patch_embedding.weight.shape[1]
    if latent == 48:
        return f"Wan2.2 TI2V 5B, as its latents of {latent} channels tell"
    image = getattr(network, "img_emb", None)
    if type(network) is comfy.ldm.wan.model.WanModel and image is not None:
        ends = getattr(image, "emb_pos", None) is not None
        return "Wan2.1 first-last-frame-to-video" if ends else "image-to-video of Wan2.1's form"
    if type(network) is comfy.ldm.wan.model.WanModel and channels == 36:
        return "image-to-video of Wan2.2's form, such as an expert of I2V A14B"
    known = {"VaceWanModel": "Wan VACE", "CameraWanModel": "Wan Fun-Camera", "WanModel_S2V": "Wan2.2 S2V",
             "AnimateWanModel": "Wan2.2 Animate", "HumoWanModel": "HuMo"}
    return known.get(type(network).__name__, f"a variant of Wan that takes {channels} channels")


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if (0, 7) <= numbers < (0, 13):
        raise UserError(f"ComfyUI {version} computes Wan with a kernel that cannot be trained through; "
                        "update ComfyUI to 0.13.0 or newer.")
