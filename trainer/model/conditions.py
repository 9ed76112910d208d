"""Conditions: the inputs of a video model besides the noisy latent and its noise level, such as the text embeddings.

A sample's conditions are tensors by the name of their kind. Each kind has an encoder of its own, whose `id` is part of
the content key in the cache, and a function that combines the tensors of several samples into those of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CAPTION, WINDOW = "caption", "window"
"""What a condition is made from: a caption (text), or the pixels of the window that is trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionKind:
    """One kind of condition of a model family."""

    name: str
    """Its key among the encoders, in `Batch.conditions` and in `Denoiser.velocity`."""
    folder: str
    """Name of its folder in the cache."""
    source: str
    """CAPTION: the encoder gets a caption. WINDOW: it gets pixels_FHW3, as the VAE does."""
    collate: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """Combines the tensors of B samples into one (B, ...), fp32."""


def pad_rows(texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
    """text_BLD, fp32: shorter texts are padded with zero rows to the longest."""
    return torch.nn.utils.rnn.pad_sequence([text_LD.float() for text_LD in texts_LD], batch_first=True)


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, ...), fp32, of tensors of one shape."""
    return torch.stack([tensor.float() for tensor in tensors])


TEXT = ConditionKind(name="text", folder="texts", source=CAPTION, collate=pad_rows)
"""text_BLD: embeddings of the caption, L tokens of width D, without the padding that the model adds."""
