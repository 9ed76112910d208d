"""ComfyUI's VAE and CLIP as LatentCodec and ConditionEncoder, the protocols of trainer/model/backend.py.

Shape legend: C latent channels, F frames (of pixels or of the latent), H height, W width, 3 = RGB, L text tokens,
D width of the text encoder.
"""

from __future__ import annotations

import copy
import re

import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.text_encoders.wan
import numpy as np
import torch

from ...trainer.base.errors import UserError, content_hash
from ...trainer.model.family import ModelFamily
from ...trainer.model.wan21 import WAN21_T2V
from ...trainer.model.wan22 import WAN22_5B
from .fingerprint import fingerprint

_EMBEDDING = "embedding:"
"""Begins the name of a textual inversion in ComfyUI's prompts; there is no way to escape it."""

_NO_EMBEDDING = "\0embedding:"
"""Takes its place for captions that are plain text; no text file holds a NUL."""


_VAES = {
    WAN21_T2V.latent_channels: (
        comfy.ldm.wan.vae.WanVAE, "Wan21", "Wan2.1's (wan_2.1_vae.safetensors, WanVAE with 16)"),
    WAN22_5B.latent_channels: (
        comfy.ldm.wan.vae2_2.WanVAE, "Wan22", "Wan2.2's (wan2.2_vae.safetensors, WanVAE with 48)"),
}
"""By latent channels: the class, how it is named in keys of the cache, and what the user is asked for."""


class WanCodec:
    """The graph's VAE, with the normalisation that the family was trained on.

    Raises:
        UserError: another VAE than the family's.
    """

    def __init__(self, vae, family: ModelFamily = WAN21_T2V) -> None:
        network = getattr(vae, "first_stage_model", None)
        kind, key, wanted = _VAES[family.latent_channels]
        if not isinstance(network, kind) or vae.latent_channels != family.latent_channels:
            raise UserError(
                f"The VAE is a {type(network).__name__} with {getattr(vae, 'latent_channels', 'unknown')} latent "
                f"channels; load {wanted}, or choose another model in Dataset Settings."
            )
        self._vae = vae
        self._family = family
        self.id = content_hash(key, fingerprint(vae.patcher), str(vae.vae_dtype))

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels to what VAE Encode gives, normalised: latent_CFHW, fp32 on the CPU."""
        image_FHW3 = torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0)
        with torch.inference_mode():
            latent_1CFHW = self._family.normalize(self._vae.encode(image_FHW3).float())
        return latent_1CFHW[0].cpu()


class CaptionEncoder:
    """The graph's CLIP. A caption is plain text, or a prompt as in CLIP Text Encode.

    In a prompt "(word)" is "word" at weight 1.1, "(16:9)" is "16" at weight 9, and "embedding:name" is a file.

    Args:
        prompt_syntax: read captions as prompts.

    Raises:
        UserError: no CLIP is connected, or another text encoder than Wan's.
    """

    def __init__(self, clip, prompt_syntax: bool = False) -> None:
        if clip is None:
            raise UserError("There is no text encoder; load umt5_xxl with Load CLIP, type wan.")
        network = getattr(clip, "cond_stage_model", None)
        if not isinstance(network, comfy.text_encoders.wan.WanT5Model):
            raise UserError(f"The text encoder is {_in_words(network)}, which Wan does not read; load umt5_xxl with "
                            "Load CLIP, type wan.")
        self._clip = clip
        self._prompt_syntax = prompt_syntax
        self._plain = _without_embeddings(clip)
        options = getattr(clip, "tokenizer_options", {})
        self.id = content_hash(fingerprint(clip.patcher), clip.layer_idx, *([options] if options else []))

    def key_of(self, caption: str) -> str:
        """What stands for a caption in its cache key: the prompt that gives its embedding.

        That is the caption itself, unless it holds something that prompts give a meaning; so the caches from when
        captions were read as prompts stay valid for all others.
        """
        if self._prompt_syntax:
            return caption
        return _escaped(caption).replace(_EMBEDDING, _NO_EMBEDDING)

    def encode(self, caption: str) -> torch.Tensor:
        """text_LD, fp32 on the CPU, without the zero rows of the padding; at least one row."""
        with torch.inference_mode():
            if self._prompt_syntax:
                tokens = self._clip.tokenize(caption)
            else:
                tokens = self._plain.tokenize(_escaped(caption))
            text_1LD = self._clip.encode_from_tokens_scheduled(tokens)[0][0]
        text_LD = text_1LD[0].float().cpu()
        used = text_LD.abs().sum(1).nonzero()
        return text_LD[: int(used[-1]) + 1 if len(used) else 1].clone()


def _escaped(caption: str) -> str:
    r"""The prompt that ComfyUI reads as these very words: `\(` and `\)` for brackets, also after a backslash."""
    return re.sub(r"([()])", r"\\\1", caption)


def _without_embeddings(clip):
    """A copy of the CLIP object, over the same model, whose tokenizer takes "embedding:name" for words."""
    copied = copy.copy(clip)
    copied.tokenizer = copy.copy(clip.tokenizer)
    name = copied.tokenizer.clip
    tokenizer = copy.copy(getattr(copied.tokenizer, name))
    tokenizer.embedding_identifier = _NO_EMBEDDING
    setattr(copied.tokenizer, name, tokenizer)
    return copied


def _in_words(network: object) -> str:
    """Such as "a MochiT5XXL (comfy.text_encoders.genmo)"."""
    kind = type(network)
    return f"a {kind.__name__.rstrip('_')} ({kind.__module__})"
