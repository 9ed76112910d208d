"""Which model family a loaded MODEL is, and whether this ComfyUI can be trained through.

A family is recognised by its network's inputs: the channels it takes and its latents have, and whether it sees an
image's embedding. Never by a file's name, nor by a class alone: ComfyUI gives one class to most of them.
"""

from __future__ import annotations

import comfy.ldm.wan.model
import comfyui_version

from ...trainer.base.errors import UserError
from ...trainer.model import families
from ...trainer.model.family import ModelFamily
from ...trainer.model.forms import NO_IMAGE, ONE, OTHERS, TRAINED, TWO, Form

VACE_CHANNELS = 96
"""That the further blocks of VACE take: two latents, and a mask of 8 x 8."""


_WITH_REFERENCE = ("Wan2.1 Fun-Control", "Wan2.2 Fun-Control")
"""Whose networks may have a ref_conv. ComfyUI's node for Wan2.1's gives it nothing."""

_CLASSES = {
    "VaceWanModel": "a variant of Wan VACE", "CameraWanModel": "Wan Fun-Camera", "WanModel_S2V": "Wan2.2 S2V",
    "AnimateWanModel": "Wan2.2 Animate", "WanAnimate2Model": "Wan Animate 2", "HumoWanModel": "HuMo",
    "CausalWanModel": "a causal Wan, which makes a video frame by frame", "WanDancerModel": "Wan2.2 WanDancer",
    "SCAILWanModel": "Wan SCAIL", "SCAIL2WanModel": "Wan SCAIL 2", "WAN21_FlowRVS": "Wan FlowRVS",
}
"""Of networks, and of ComfyUI's models around the plain network, that are computed in a way of their own."""

_PLAIN = ("WAN21", "WAN22")
"""ComfyUI's models around the plain network that noise and condition it as Wan does."""


def family_of(model) -> ModelFamily:
    """The family of a MODEL.

    Raises:
        UserError: a model of no known family, or a version of ComfyUI whose kernels for Wan have no backward.
    """
    _check_version(comfyui_version.__version__)
    network = model.model.diffusion_model
    if not isinstance(network, comfy.ldm.wan.model.WanModel):
        raise UserError(
            f"The model is a {type(model.model).__name__}, not Wan; load a text-to-video or image-to-video model of "
            "Wan2.1 or Wan2.2.")
    form = _form(model)
    name = TRAINED.get(form, "")
    if _is_vace(model, form):
        name = "Wan2.1 VACE"
    elif type(network) is not comfy.ldm.wan.model.WanModel or type(model.model).__name__ not in _PLAIN or (
            name not in _WITH_REFERENCE and getattr(network, "ref_conv", None) is not None):
        name = ""
    if not name:
        raise UserError(f"The model is {_what(model, form)}; this version trains text-to-video, image-to-video, "
                        "Fun-Control and VACE of Wan2.1 and Wan2.2 only.")
    return families.named(name)


def _is_vace(model, form: Form) -> bool:
    network = model.model.diffusion_model
    return (type(network) is comfy.ldm.wan.model.VaceWanModel and type(model.model).__name__ == "WAN21_Vace"
            and form == Form(16, 16, NO_IMAGE) and network.vace_in_dim == VACE_CHANNELS)


def _form(model) -> Form:
    network = model.model.diffusion_model
    image = getattr(network, "img_emb", None)
    return Form(
        latent=model.model.latent_format.latent_channels,
        channels=network.patch_embedding.weight.shape[1],
        image=NO_IMAGE if image is None else ONE if getattr(image, "emb_pos", None) is None else TWO)


def _what(model, form: Form) -> str:
    """Which Wan a model is that is not trained, as ComfyUI tells them apart (comfy/model_detection.py)."""
    network = model.model.diffusion_model
    for part in (network, model.model):
        if type(part).__name__ in _CLASSES:
            return _CLASSES[type(part).__name__]
    if form in OTHERS:
        return OTHERS[form]
    reference = " and a reference image" if getattr(network, "ref_conv", None) is not None else ""
    return f"{form.told()}{reference}"


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if (0, 7) <= numbers < (0, 13):
        raise UserError(f"ComfyUI {version} computes Wan with a kernel that cannot be trained through; "
                        "update ComfyUI to 0.13.0 or newer.")
