"""Conditions as the network gets them in sampling: made by ComfyUI's own model, of what lies in the cache.

`BaseModel.extra_conds` makes of a conditioning what a network is called with; it depends neither on the noise nor on
its level. So the same function is asked here, on the CPU, and training and sampling agree in every bit.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, I channels beside the latent, L tokens of
images, D width of CLIP vision's hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch

from ...trainer.base.errors import UserError
from ...trainer.model.conditions import CLIP_VISION_ROWS, CLIP_VISION_WIDTH
from ...trainer.model.family import ModelFamily

CONCAT, CLIP, REFERENCE, VACE = FOR_NETWORK = ("c_concat", "clip_fea", "reference_latent", "vace_context")
"""Names of what `replayed` gives: those of the network's own arguments."""

KNOWN = "known"
"""And one more, which becomes noise levels."""


def replayed(
    model, family: ModelFamily, conditions: Mapping[str, torch.Tensor], size_FHW: Sequence[int], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All but the text, on the CPU, of those kinds that the family takes.

    c_concat_BIFHW: the channels beside the latent, as they are without an image where there is none.
    clip_fea_BLD: hidden states of CLIP vision.
    reference_latent_BCHW: a frame that comes before the video.
    vace_context_BnCFHW: n = 1 control clip of 32 channels, and 64 of its mask.
    known_BF, fp32: 1 where a frame is given without noise; left out where no sample has such a frame, since
    ComfyUI then gives one noise level to a sample and not one to each of its frames.

    Args:
        model: ComfyUI's BaseModel of the network.
        conditions: {"image": image_BCFHW, "clip_vision": clip_vision_BLD, "known": known_BF, "control": control_BCFHW,
            "reference": reference_BC1HW, "vace": vace_BCFHW}, as they are in the cache.
        size_FHW: of the latents.
        dtype: in which the network computes.

    Raises:
        UserError: the network takes an image by CLIP vision, and there is none.
    """
    kinds = {kind.name for kind in family.conditions}
    given = {name: value.cpu() for name, value in conditions.items() if name in kinds}
    options = {}
    if "image" in given:
        options["concat_latent_image"] = given["image"][:, :family.latent_channels].clone()  # it is written into
        options["concat_mask"] = given["image"][:, family.latent_channels:]
    if "control" in given:
        options |= _of_fun_control(family, given)
    if "vace" in given:
        options["vace_frames"] = [given["vace"]]
    if "clip_vision" in given:
        options["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=given["clip_vision"])
    elif "clip_vision" in kinds:
        # without it ComfyUI gives the text to the layers that are for the image
        raise UserError(f"{family.name} sees its first frame through CLIP vision too, and there is none here; connect "
                        "a CLIP vision.")
    samples = len(conditions["text"])
    noise_BCFHW = torch.zeros(samples, family.latent_channels, *size_FHW)
    found = model.extra_conds(noise=noise_BCFHW, device=noise_BCFHW.device, **options)
    result = {name: found[name].cond.to(dtype) for name in FOR_NETWORK if name in found}
    if "known" in given and given["known"].any():
        result[KNOWN] = given["known"].float()
    return result


def arguments(
    model, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The network's input, its timesteps and further arguments, as BaseModel._apply_model makes them.

    Args:
        model: ComfyUI's BaseModel of the network.
        x_BCFHW: the noisy latent, in the dtype of the network and on its device, where all results are.
        timestep_B: fp32.
        conditions: what `replayed` gave.

    Returns:
        The latent with the channels beside it; timesteps (B,), or (B, F) where frames are given without noise; and
        the arguments by name.
    """
    device = x_BCFHW.device
    further = {name: conditions[name].to(device) for name in (CLIP, REFERENCE, VACE) if name in conditions}
    if VACE in conditions:
        further["vace_strength"] = [1.0]  # of the control clip, as BaseModel has it by itself
    if KNOWN in conditions:
        unknown_B1F11 = 1 - conditions[KNOWN].to(device)[:, None, :, None, None]
        timestep_B = model.process_timestep(timestep_B, x=x_BCFHW, denoise_mask=unknown_B1F11)
    if CONCAT in conditions:
        x_BCFHW = torch.cat([x_BCFHW, conditions[CONCAT].to(device)], dim=1)
    return x_BCFHW, timestep_B, further


def num_tokens(family: ModelFamily, conditions: Mapping[str, torch.Tensor], size_FHW: Sequence[int]) -> int:
    """Tokens of a sample in the network's blocks.

    Args:
        conditions: what `replayed` gave.
        size_FHW: of the latent; the network pads sides that its patch size does not divide.
    """
    frames, *sides = (-(-side // patch) for side, patch in zip(size_FHW, family.patch_FHW, strict=True))
    return (frames + (REFERENCE in conditions)) * math.prod(sides)


def _of_fun_control(family: ModelFamily, given: Mapping[str, torch.Tensor]) -> dict:
    """Options of extra_conds as WanFunControlToVideo gives them, or Wan22FunControlToVideo where the first frame comes
    before the video; the former gives no mask, and its model reads none."""
    control_BCFHW, reference_BC1HW = given["control"], given.get("reference")
    start_BCFHW = family.denormalize(torch.zeros_like(control_BCFHW))
    mask_BCFHW = torch.ones_like(control_BCFHW)[:, :4]
    options = {"concat_mask": mask_BCFHW, "concat_mask_index": family.latent_channels}
    if reference_BC1HW is not None and any(kind.is_frame for kind in family.conditions):
        options["reference_latents"] = [reference_BC1HW]
    elif reference_BC1HW is not None:
        start_BCFHW[:, :, :1] = reference_BC1HW
    return options | {"concat_latent_image": torch.cat([control_BCFHW, start_BCFHW], dim=1)}


def example(family: ModelFamily, channels: int, size_FHW: Sequence[int]) -> dict[str, torch.Tensor]:
    """Conditions of one sample with random values, as `replayed` takes them; the first frame is given, if one can be.

    Args:
        channels: that the network takes.
        size_FHW: of the latent.
    """
    generator = torch.Generator().manual_seed(0)
    own, sides = family.latent_channels, size_FHW[1:]
    sizes = {"text": (1, 8, family.text_width), "image": (1, channels - own, *size_FHW),
             "clip_vision": (1, CLIP_VISION_ROWS, CLIP_VISION_WIDTH), "control": (1, own, *size_FHW),
             "reference": (1, own, 1, *sides), "vace": (1, 2 * own, *size_FHW)}
    kinds = [kind.name for kind in family.conditions]
    found = {kind: torch.randn(sizes[kind], generator=generator) for kind in kinds if kind in sizes}
    if "known" in kinds:
        found["known"] = torch.eye(size_FHW[0])[:1]
    return found
