"""What a model must offer the trainer: four small protocols.

Shape legend of the project: B batch, C latent channels, F frames (of pixels or of the latent), H height, W width,
L text tokens, D width of the text encoder, 3 = RGB. `t_B` is the noise level in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from .adapters import Adapter, FrozenLinear
from .family import ModelFamily


class LatentCodec(Protocol):
    """Pixels to latents: the VAE."""

    id: str
    """Changes with the weights and with everything else that changes a latent."""

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels to a normalised latent_CFHW, fp32 on the CPU, of the family's `latent_size`."""


class ConditionEncoder(Protocol):
    """What one kind of condition is encoded with, such as the text encoder."""

    id: str
    """Changes with the weights and with everything else that changes what is encoded."""

    def encode(self, source: str | np.ndarray) -> torch.Tensor:
        """A tensor on the CPU, at least one row, of a caption or of pixels_FHW3, as the kind's `source` says.

        Text gives text_LD without its padding.
        """


class Denoiser(Protocol):
    """The video model: which it is, what of it can be trained, and its prediction."""

    id: str
    """Changes with the weights and with the LoRAs that are applied to them."""
    family: ModelFamily
    device: torch.device
    compute_dtype: torch.dtype
    """Of the activations."""

    def linear_sizes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) of every Linear of the model by its name."""

    def linears(self) -> Mapping[str, FrozenLinear]:
        """The Linears that can get an adapter, by name; the adapter's settings choose among them."""

    def attached(
        self, adapter: Adapter, linears: Mapping[str, FrozenLinear], gradient_checkpointing: bool, memory: int
    ) -> AbstractContextManager[None]:
        """Holds the model loaded and frozen with the adapter in it; leaves it as it was, however that ends.

        Args:
            linears: what `linears()` gave and the adapter was made over.
            memory: bytes to keep free on the device for activations, adapter and optimizer.
        """

    def training(self) -> AbstractContextManager[None]:
        """Holds what must be true during forward and backward, and puts it back however that ends."""

    def velocity(
        self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Predicted noise - x0 in fp32, at noise level t in 0..1; only while attached.

        Args:
            conditions: a tensor (B, ...) for each of the family's kinds. Zero rows at the end of a text are padding;
                the prediction is that for texts padded to the family's text length.
        """

    def memory_estimate(self, num_tokens: int, batch_size: int, adapter: Adapter, gradient_checkpointing: bool) -> int:
        """Bytes that training needs beside the weights: activations, adapter, gradient and optimizer."""
