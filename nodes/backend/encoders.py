"""ComfyUI's VAE and CLIP as LatentCodec and ConditionEncoder, the protocols of trainer/model/backend.py.

Shape legend: C latent channels, F frames (of pixels or of the latent), H height, W width, 3 = RGB, L text tokens,
D width of the text encoder.
"""

from __future__ import annotations

import comfy.ldm.wan.vae
import numpy as np
import torch

from ...trainer.base.errors import UserError, content_hash
from ...trainer.model.family import ModelFamily
from ...trainer.model.wan21 import WAN21_T2V
from .fingerprint import fingerprint


class WanCodec:
    """The graph's VAE, with the normalisation that the family was trained on.

    Raises:
        UserError: another VAE than Wan2.1's.
    """

    def __init__(self, vae, family: ModelFamily = WAN21_T2V) -> None:
        network = getattr(vae, "first_stage_model", None)
        if not isinstance(network, comfy.ldm.wan.vae.WanVAE) or vae.latent_channels != 16:
            raise UserError(
                f"The VAE is a {type(network).__name__} with {getattr(vae, 'latent_channels', 'unknown')} latent "
                "channels; load Wan2.1's (wan_2.1_vae.safetensors, WanVAE with 16)."
            )
        self._vae = vae
        self._family = family
        self.id = content_hash("Wan21", fingerprint(vae.patcher), str(vae.vae_dtype))

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels to what VAE Encode gives, normalised: latent_CFHW, fp32 on the CPU."""
        image_FHW3 = torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0)
        with torch.inference_mode():
            latent_1CFHW = self._family.normalize(self._vae.encode(image_FHW3).float())
        return latent_1CFHW[0].cpu()


class CaptionEncoder:
    """The graph's CLIP, as CLIP Text Encode uses it.

    Raises:
        UserError: no CLIP is connected.
    """

    def __init__(self, clip) -> None:
        if clip is None:
            raise UserError("There is no text encoder; load umt5_xxl with Load CLIP, type wan.")
        self._clip = clip
        self.id = content_hash(fingerprint(clip.patcher), clip.layer_idx)

    def encode(self, caption: str) -> torch.Tensor:
        """text_LD, fp32 on the CPU, without the zero rows of the padding; at least one row."""
        with torch.inference_mode():
            text_1LD = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(caption))[0][0]
        text_LD = text_1LD[0].float().cpu()
        used = text_LD.abs().sum(1).nonzero()
        return text_LD[: int(used[-1]) + 1 if len(used) else 1].clone()
