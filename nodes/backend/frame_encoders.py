"""ConditionEncoders for the frames and control clips that models are given: ComfyUI's own nodes, for each window.

So what is trained with is, bit for bit, what those nodes put into CONDITIONING when the same picture is sampled from.

Shape legend: C channels, F frames (of pixels or of the latent), H height, W width, 3 = RGB, L tokens, D width.
"""

from __future__ import annotations

import numpy as np
import torch

from ...trainer.base.errors import UserError, content_hash
from ...trainer.model.conditions import CLIP_VISION_ROWS, CLIP_VISION_WIDTH
from ...trainer.settings.data import BOTH_ENDS, FIRST_FRAME
from .encoders import WanCodec
from .fingerprint import fingerprint

MASK_CHANNELS = 4
"""One for each pixel frame of a latent frame."""


class ImageEncoder:
    """The graph's VAE in WanImageToVideo, or in WanFirstLastFrameToVideo.

    Args:
        vae: a VAE that `WanCodec` took; `codec` is what that made of it.
        condition: FIRST_FRAME or BOTH_ENDS of trainer/settings/data.py.
    """

    def __init__(self, vae, codec: WanCodec, condition: str) -> None:
        self._vae = vae
        self._takes_last = condition == BOTH_ENDS
        self.id = content_hash("image", condition, codec.id)

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """image_CFHW, fp32 on the CPU: concat_latent_image, 16 channels, then concat_mask, 4 channels."""
        # here, since Wan's nodes bring much with them, and where one of their imports fails text is still trained on
        from comfy_extras.nodes_wan import WanFirstLastFrameToVideo, WanImageToVideo

        frames, height, width, _ = pixels_FHW3.shape
        nothing = [[torch.zeros(1, 1, 1), {}]]
        images = {"start_image": _image(pixels_FHW3[:1])}
        if self._takes_last:
            images["end_image"] = _image(pixels_FHW3[-1:])
        node = WanFirstLastFrameToVideo if self._takes_last else WanImageToVideo
        with torch.inference_mode():
            positive = node.execute(nothing, nothing, self._vae, width, height, frames, 1, **images).result[0]
            given = positive[0][1]
            image_CFHW, mask_CFHW = (given[name][0].float().cpu() for name in ("concat_latent_image", "concat_mask"))
        return torch.cat([image_CFHW, mask_CFHW.expand(MASK_CHANNELS, *mask_CFHW.shape[1:])])


class _OfNode:
    """A VAE in a node of Wan's that gives one tensor beside the prompt.

    Args:
        vae: a VAE that `WanCodec` took; `codec` is what that made of it.
    """

    name = ""

    def __init__(self, vae, codec: WanCodec) -> None:
        self._vae = vae
        self.id = content_hash(self.name, codec.id)

    def _given(self, node: str, size_FHW: tuple[int, int, int], *options, **images: torch.Tensor) -> dict:
        """What the node adds to CONDITIONING."""
        import comfy_extras.nodes_wan

        nothing = [[torch.zeros(1, 1, 1), {}]]
        frames, height, width = size_FHW
        with torch.inference_mode():
            result = getattr(comfy_extras.nodes_wan, node).execute(
                nothing, nothing, self._vae, width, height, frames, 1, *options, **images).result
        return result[0][0][1]


class ControlEncoder(_OfNode):
    """The graph's VAE in WanFunControlToVideo, and just so in Wan22FunControlToVideo."""

    name = "control"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """control_CFHW, fp32 on the CPU, of the pixels of a control clip."""
        given = self._given("WanFunControlToVideo", pixels_FHW3.shape[:3], control_video=_image(pixels_FHW3))
        image_CFHW = given["concat_latent_image"][0]
        return image_CFHW[:len(image_CFHW) // 2].float().cpu().clone()


class ReferenceEncoder(_OfNode):
    """The graph's VAE in WanFunControlToVideo, which gets the first frame as its start_image; Wan22FunControlToVideo
    makes the same of its ref_image."""

    name = "reference"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """reference_C1HW, fp32 on the CPU."""
        given = self._given("WanFunControlToVideo", (1, *pixels_FHW3.shape[1:3]), start_image=_image(pixels_FHW3[:1]))
        image_C1HW = given["concat_latent_image"][0]
        return image_C1HW[len(image_C1HW) // 2:].float().cpu().clone()


class VaceEncoder(_OfNode):
    """The graph's VAE in WanVaceToVideo, with neither a mask nor a reference image."""

    name = "vace"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """vace_CFHW, fp32 on the CPU, of the pixels of a control clip: 32 channels."""
        given = self._given("WanVaceToVideo", pixels_FHW3.shape[:3], 1.0, control_video=_image(pixels_FHW3))
        return given["vace_frames"][0][0].float().cpu().clone()


class ClipVisionEncoder:
    """The graph's CLIP vision, as CLIP Vision Encode asks it with crop "none".

    Args:
        condition: FIRST_FRAME, BOTH_ENDS or CONTROL_AND_FIRST of trainer/settings/data.py.

    Raises:
        UserError: another CLIP vision than Wan2.1's.
    """

    def __init__(self, clip_vision, condition: str) -> None:
        size = _size_of(clip_vision)
        if size != (CLIP_VISION_ROWS, CLIP_VISION_WIDTH):
            kind = type(getattr(clip_vision, "model", clip_vision)).__name__
            tokens, width = size or ("an unknown number of", "unknown")
            raise UserError(f"The CLIP vision is a {kind} with {tokens} tokens of width {width}, which Wan does not "
                            "read; load clip_vision_h.safetensors (257 tokens of width 1280).")
        self._clip_vision = clip_vision
        self._takes_last = condition == BOTH_ENDS
        shown = BOTH_ENDS if self._takes_last else FIRST_FRAME
        self.id = content_hash("clip vision", shown, fingerprint(clip_vision.patcher))

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """clip_vision_LD of the first frame, then of the last where both are given, on the CPU."""
        shown = [pixels_FHW3[:1], pixels_FHW3[-1:]] if self._takes_last else [pixels_FHW3[:1]]
        with torch.inference_mode():
            said = [self._clip_vision.encode_image(_image(frame), crop=False).penultimate_hidden_states[0]
                    for frame in shown]
            return torch.cat(said).cpu()


def _image(pixels_FHW3: np.ndarray) -> torch.Tensor:
    """An IMAGE as Load Image gives it."""
    return torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0)


def _size_of(clip_vision) -> tuple[int, int] | None:
    """(tokens, width) of its hidden states."""
    found = getattr(clip_vision, "model", None)
    for name in ("vision_model", "embeddings", "position_embedding", "weight"):
        found = getattr(found, name, None)
    return None if found is None else tuple(found.shape)
