"""What a video model is told beside the noisy latent: each kind of condition, encoded once and put in a batch.

A sample's conditions are tensors by the name of their kind. Each kind has an encoder of its own, whose `id` is part of
the content key in the cache, and says how the tensors of several samples become one.
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
    """Its key among the encoders, in a batch and in `Denoiser.velocity`; also the name of its folder in the cache."""
    folder: str
    """Of the cache."""
    source: str
    """CAPTION: the encoder gets a caption. WINDOW: it gets pixels_FHW3, as the VAE does."""
    collate: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """One tensor (B, ...), fp32, of the tensors of B samples."""


def pad_rows(texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
    """text_BLD, fp32: zeros follow the rows of the shorter texts."""
    return torch.nn.utils.rnn.pad_sequence([text_LD.float() for text_LD in texts_LD], batch_first=True)


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, ...), fp32, of tensors of one shape."""
    return torch.stack([tensor.float() for tensor in tensors])


TEXT = ConditionKind(name="text", folder="texts", source=CAPTION, collate=pad_rows)
"""text_BLD: embeddings of the caption, L tokens of width D, without the padding that the model adds."""
