"""Conditions as diffusers' transformer takes them, made of what lies in the cache.

What each tensor of a cache means is said in trainer/model/{conditions,wan21,wan22}.py; ComfyUI makes the same of it
(nodes/backend/conditions.py).

Shape legend: B batch, C latent channels, F latent frames, H height, W width, I channels beside the latent, L tokens of
images, D width of CLIP vision's hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..base.errors import UserError
from ..model.conditions import CLIP_VISION, CLIP_VISION_ROWS, CLIP_VISION_WIDTH, KNOWN
from ..model.family import ModelFamily
from ..model.wan21 import CONTROL_CLIP, IMAGE, REFERENCE

BESIDE, SEEN = "beside", "clip_fea"
"""Names of what `replayed` gives besides KNOWN's: BIFHW put beside the latent, and hidden states of CLIP vision BLD."""


def replayed(
    family: ModelFamily, conditions: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All but the text, on the CPU, of those kinds that the family takes.

    Known frames, known_BF in fp32, are left out where no sample has one, since one noise level is then enough.

    Args:
        conditions: by the names of their kinds, as they are in the cache.
        dtype: in which the network computes.

    Raises:
        UserError: the network takes an image by CLIP vision, and there is none.
    """
    kinds = {kind.name for kind in family.conditions}
    given = {name: value.cpu().float() for name, value in conditions.items() if name in kinds}
    found = {}
    if IMAGE.name in kinds:
        found[BESIDE] = _of_image(family, given[IMAGE.name])
    if CONTROL_CLIP.name in kinds:
        found[BESIDE] = _of_control(family, given[CONTROL_CLIP.name], given[REFERENCE.name])
    if CLIP_VISION.name in kinds:
        if CLIP_VISION.name not in given:
            raise UserError(f"{family.name} sees its first frame through CLIP vision too, and there is none here; "
                            "cache the dataset with a CLIP vision.")
        found[SEEN] = given[CLIP_VISION.name]
    found = {name: value.to(dtype) for name, value in found.items()}
    if KNOWN.name in given and given[KNOWN.name].any():
        found[KNOWN.name] = given[KNOWN.name]
    return found


def _of_image(family: ModelFamily, image_BCFHW: torch.Tensor) -> torch.Tensor:
    """The mask of the frames that are given, 1 where one is, then their latent (wan/image2video.py of Wan2.1)."""
    latent, mask = image_BCFHW.split((family.latent_channels, image_BCFHW.shape[1] - family.latent_channels), dim=1)
    return torch.cat([1 - mask, family.normalize(latent)], dim=1)


def _of_control(family: ModelFamily, control_BCFHW: torch.Tensor, reference_BC1HW: torch.Tensor) -> torch.Tensor:
    """The control clip, then the first frame in a clip of zeros."""
    first_BCFHW = torch.zeros_like(control_BCFHW)
    first_BCFHW[:, :, :1] = family.normalize(reference_BC1HW)
    return torch.cat([family.normalize(control_BCFHW), first_BCFHW], dim=1)


def seen_by_diffusers(seen_BLD: torch.Tensor) -> torch.Tensor:
    """The hidden states as diffusers joins them: those of two images as two samples."""
    return seen_BLD.reshape(-1, CLIP_VISION_ROWS, seen_BLD.shape[-1])


def example(family: ModelFamily, size_FHW: Sequence[int]) -> dict[str, torch.Tensor]:
    """Conditions of one sample with random values, as they come from a cache: no frame is known, no text is padded.

    Args:
        size_FHW: of the latent.
    """
    generator = torch.Generator().manual_seed(0)
    own, sides = family.latent_channels, size_FHW[1:]
    images = 2 if family.name == "Wan2.1 FLF2V" else 1
    sizes = {"text": (1, family.text_length, family.text_width), IMAGE.name: (1, own + 4, *size_FHW),
             CLIP_VISION.name: (1, images * CLIP_VISION_ROWS, CLIP_VISION_WIDTH),
             CONTROL_CLIP.name: (1, own, *size_FHW), REFERENCE.name: (1, own, 1, *sides)}
    return {kind.name: torch.randn(sizes[kind.name], generator=generator)
            for kind in family.conditions if kind.name in sizes}
