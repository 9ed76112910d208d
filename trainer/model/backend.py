"""What a video model must offer the trainer: three small protocols.

Shape legend of the project: B batch, C latent channels (16), F frames (pixels or latent), H height,
W width, L text tokens, D width of the text encoder, 3 = RGB. `t_B` is the noise level in 0..1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch


class LatentCodec(Protocol):
    """Pixels to latents, the VAE of the graph."""

    id: str
    """Changes with the weights and with everything else that changes a latent."""

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels (F = 4n+1) to a normalised latent_CFHW, fp32 on the CPU, F = n+1, H and W an eighth."""


class TextEncoder(Protocol):
    """Captions to the embeddings the model is conditioned on."""

    id: str

    def encode(self, caption: str) -> torch.Tensor:
        """text_LD, fp32 on the CPU, without the padding; L is at least 1."""


class Denoiser(Protocol):
    """The video model with the adapter in place."""

    device: torch.device
    compute_dtype: torch.dtype

    def velocity(self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, text_BLD: torch.Tensor) -> torch.Tensor:
        """Predicted noise - x0 in fp32, at noise level t in 0..1 (the model is told 1000 t in fp32).

        Zero rows at the end of a text are padding; the prediction is that for texts padded to 512 tokens.
        """

    def training(self) -> AbstractContextManager[None]:
        """Holds what must be true during forward and backward, and puts it back however that ends."""
