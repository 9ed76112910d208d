"""Which model family a loaded MODEL is, and whether this ComfyUI can be trained through.

A family is recognised by its network's class, type and number of input channels, never by a file's name.
"""

from __future__ import annotations

import comfy.ldm.wan.model
import comfyui_version

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
    kind = type(network)
    if not isinstance(network, comfy.ldm.wan.model.WanModel):
        raise UserError(f"The model is a {type(model.model).__name__}, not Wan; load a Wan2.1 text-to-video model.")
    if kind is not comfy.ldm.wan.model.WanModel or network.model_type != "t2v":
        raise UserError(f"The model is a {kind.__name__} ({network.model_type}); this version trains Wan2.1 "
                        "text-to-video models only.")
    channels = network.patch_embedding.weight.shape[1]
    if channels != model.model.latent_format.latent_channels or channels != WAN21_T2V.latent_channels:
        raise UserError(f"The model takes {channels} channels, Wan2.1 text-to-video has {WAN21_T2V.latent_channels}; "
                        "load a Wan2.1 text-to-video model.")
    return WAN21_T2V


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if (0, 7) <= numbers < (0, 13):
        raise UserError(f"ComfyUI {version} computes Wan with a kernel that cannot be trained through; "
                        "update ComfyUI to 0.13.0 or newer.")
