"""ConditionEncoders for the frames that image-to-video models are given, as ComfyUI's nodes make them.

Shape legend: C channels, F frames (of pixels or of the latent), H height, W width, 3 = RGB, L tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..base.errors import UserError, content_hash
from ..model.backend import ConditionEncoder
from ..model.conditions import (
    CLIP_VISION,
    CLIP_VISION_ROWS,
    CLIP_VISION_WIDTH,
    KNOWN,
    SIZE,
    WINDOW,
    FirstFrameKnown,
)
from ..model.family import ModelFamily
from ..model.wan21 import IMAGE
from ..settings.data import BOTH_ENDS
from .codec import DiffusersCodec
from .weights import fill, fingerprint, read

WANTED = "CLIP vision ViT-H/14 (clip_vision_h.safetensors, with 257 tokens of width 1280)"

GREY = 0.5
"""Of the frames that are not given."""

_HEAD_WIDTH = 80
"""Of CLIP vision ViT-H/14."""

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on (openai/CLIP, clip/clip.py)."""


class ImageEncoder:
    """The VAE over a clip that is grey but for its first frame, or for both its ends.

    WanImageToVideo and WanFirstLastFrameToVideo give the same (ComfyUI, comfy_extras/nodes_wan.py).

    Args:
        condition: FIRST_FRAME or BOTH_ENDS of trainer/settings/data.py.
    """

    def __init__(self, codec: DiffusersCodec, condition: str) -> None:
        self._codec = codec
        self._takes_last = condition == BOTH_ENDS
        self.id = content_hash("image", condition, codec.id)

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """image_CFHW, fp32 on the CPU: the latent before normalisation, 16 channels, then 4 of the mask."""
        given = [0, len(pixels_FHW3) - 1] if self._takes_last else [0]
        image_FHW3 = torch.full(pixels_FHW3.shape, GREY)
        image_FHW3[given] = torch.from_numpy(pixels_FHW3[given].astype(np.float32) / 255.0)
        latent_CFHW = self._codec.encode_raw(image_FHW3)
        mask_CFHW = torch.ones(4, *latent_CFHW.shape[1:])  # one channel for each pixel frame of a latent frame
        mask_CFHW[:, 0] = 0
        if self._takes_last:
            mask_CFHW[-1, -1] = 0  # the last pixel frame alone
        return torch.cat([latent_CFHW, mask_CFHW])


class ClipVisionEncoder:
    """CLIPVisionModel over the first frame, or over both ends: what it says before its last layer.

    Args:
        model: transformers' CLIPVisionModel.
        condition: FIRST_FRAME or BOTH_ENDS of trainer/settings/data.py.
    """

    def __init__(self, model, condition: str) -> None:
        self._model = model
        self._takes_last = condition == BOTH_ENDS
        self.id = content_hash("transformers CLIP vision", condition, fingerprint(model.state_dict()))

    @torch.no_grad()
    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """clip_vision_LD of the first frame, then of the last where both are given, fp32 on the CPU."""
        shown = [0, len(pixels_FHW3) - 1] if self._takes_last else [0]
        side = self._model.config.image_size
        pixels_B3HW = _seen(pixels_FHW3[shown], side).to(self._model.device)
        states_BLD = self._model(pixels_B3HW, output_hidden_states=True).hidden_states[-2]
        return states_BLD.flatten(0, 1).float().cpu()


def _seen(pixels_FHW3: np.ndarray, side: int) -> torch.Tensor:
    """pixels_B3HW as CLIP sees them: made square without a crop, in 256 levels, normalised."""
    image_B3HW = torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0).movedim(-1, 1)
    if image_B3HW.shape[2:] != (side, side):
        image_B3HW = F.interpolate(image_B3HW, size=(side, side), mode="bicubic", antialias=True)
    image_B3HW = (255 * image_B3HW).clip(0, 255).round() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    return (image_B3HW - mean) / std


def load_clip_vision(path: Path, condition: str, device: torch.device | str = "cpu") -> ClipVisionEncoder:
    """CLIP vision of a diffusers folder (its root or its `image_encoder`), or of ComfyUI's single file.

    It computes in fp32, as ComfyUI's does.

    Raises:
        UserError: there is no such file, or it holds another model.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPVisionModel

    weights = {re.sub(r"^vision_model\.", "", name): value.float()
               for name, value in read(path, "image_encoder").items()
               if name != "visual_projection.weight" and not name.endswith("position_ids")}
    with init_empty_weights(include_buffers=False):
        model = CLIPVisionModel(_config(weights))
    # older transformers keep the names of the file
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    fill(model, {prefix + name: value for name, value in weights.items()}, WANTED)
    return ClipVisionEncoder(model.to(device), condition)


def _config(weights: Mapping[str, torch.Tensor]):
    """A CLIPVisionConfig; what no shape tells is that of ViT-H/14 (laion/CLIP-ViT-H-14-laion2B-s32B-b79K)."""
    from transformers import CLIPVisionConfig

    places, patches, wide = (weights.get(name) for name in (
        "embeddings.position_embedding.weight", "embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight"))
    size = None if places is None else tuple(places.shape)
    if size != (CLIP_VISION_ROWS, CLIP_VISION_WIDTH) or patches is None or wide is None:
        said = "no CLIP vision" if size is None else f"a CLIP vision with {size[0]} tokens of width {size[1]}"
        raise UserError(f"The file holds {said}, which Wan does not read; load {WANTED}.")
    layers = {match[1] for name in weights if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    return CLIPVisionConfig(
        hidden_size=CLIP_VISION_WIDTH, intermediate_size=len(wide), num_hidden_layers=len(layers),
        num_attention_heads=CLIP_VISION_WIDTH // _HEAD_WIDTH, patch_size=patches.shape[-1],
        image_size=patches.shape[-1] * round((CLIP_VISION_ROWS - 1) ** 0.5), hidden_act="gelu", layer_norm_eps=1e-5)


def frame_encoders(
    family: ModelFamily, condition: str, codec: DiffusersCodec, clip_vision: ClipVisionEncoder | None = None
) -> dict[str, ConditionEncoder]:
    """The encoders of what a dataset of this `condition` gives to a model beside the text, by kind.

    Args:
        family: of the dataset.
        clip_vision: None where there is none; then the dataset lacks it, and only Wan2.1's image-to-video needs it.

    Raises:
        UserError: there are no encoders for such a condition here.
    """
    kinds = {kind.name for kind in family.kinds(condition)}
    made = {IMAGE.name: lambda: ImageEncoder(codec, condition), KNOWN.name: FirstFrameKnown,
            CLIP_VISION.name: lambda: clip_vision}
    if missing := sorted(kinds - made.keys() - {"text"}):
        raise UserError(f'The dataset\'s condition is "{condition}", whose {" and ".join(missing)} only ComfyUI '
                        "encodes; cache it there and export the job with its cache.")
    found = {name: made[name]() for name in made if name in kinds}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def conditions_of(
    pixels_FHW3: np.ndarray, family: ModelFamily, encoders: Mapping[str, ConditionEncoder]
) -> dict[str, torch.Tensor]:
    """What a model is given of one clip beside the text, by kind, for one sample: (1, ...).

    Args:
        pixels_FHW3: of which only the given frames count.
        encoders: what `frame_encoders` gave.

    Raises:
        UserError: the model needs one that there is not.
    """
    frames, height, width, _ = pixels_FHW3.shape
    rows = family.stride_FHW
    size_FHW = (frames - 1) // rows[0] + 1, height // rows[1], width // rows[2]
    found = {}
    for kind in family.conditions:
        if kind.source in (WINDOW, SIZE) and kind.name in encoders:
            source = pixels_FHW3 if kind.source == WINDOW else size_FHW
            found[kind.name] = kind.collate([encoders[kind.name].encode(source)])
        elif kind.source in (WINDOW, SIZE) and not kind.is_optional:
            raise UserError(f"{family.name} needs {kind.name.replace('_', ' ')} of its frames, and there is no encoder "
                            "for it; give a first frame and, for Wan2.1, a CLIP vision.")
    return found
