"""What a model must offer the trainer, as three protocols: the VAE, an encoder of conditions, and the denoiser.

The suffix of a tensor's name lists its dimensions: B batch, C latent channels, F frames (of pixels or of the latent),
H height, W width, L text tokens, D width of the text embeddings, 3 = RGB. `t_B` is the noise level of each sample,
from 0 (data) to 1 (pure noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from ..adapter.adapters import Adapter
from ..adapter.linears import FrozenLinear
from ..memory.choice import Space
from ..memory.plan import Plan
from ..memory.sizes import ModelSize
from .family import ModelFamily


class LatentCodec(Protocol):
    """Pixels to latents: the VAE."""

    id: str
    """Part of cache keys: changes with the weights and with everything else that changes a latent."""

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels to a normalised latent_CFHW, fp32 on the CPU, of the family's `latent_size`."""


class ConditionEncoder(Protocol):
    """The encoder of one kind of condition, such as the text encoder."""

    id: str
    """Part of cache keys: changes with the weights and with everything else that changes the encoder's output.

    An encoder that does not read all captions alike also has a `key_of(caption) -> str`: what stands for the caption
    in its cache key. For others it is the caption itself.
    """

    def encode(self, source: str | np.ndarray | Sequence[int]) -> torch.Tensor:
        """Encode a caption, uint8 pixels_FHW3, or the latent's size_FHW to a tensor on the CPU with at least one row.

        `ConditionKind.source` says which of these the encoder gets. A caption gives text_LD without padding rows.
        """


class Denoiser(Protocol):
    """The video model: its identity, the Linears that can be trained, and its velocity prediction."""

    id: str
    """Part of a run's key: changes with the weights and with the LoRAs that are applied to them."""
    family: ModelFamily
    device: torch.device
    compute_dtype: torch.dtype
    """Of the activations."""

    def linear_sizes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) of every Linear of the model by its name."""

    def linears(self) -> Mapping[str, FrozenLinear]:
        """The Linears that can get an adapter, by name; `LoraConfig` chooses among them."""

    @property
    def size(self) -> ModelSize:
        """What of it counts for memory."""

    def space(self) -> Space:
        """What its device has for training, once all that can leave it has left."""

    def make_room(self, memory: int) -> None:
        """Have so many bytes free on the device, before anything is put there."""

    def attached(
        self, adapter: Adapter, linears: Mapping[str, FrozenLinear], plan: Plan, memory: int
    ) -> AbstractContextManager[Sequence[str]]:
        """Inside the context the model is loaded, frozen and has the adapter attached; restored on exit in any case.

        Its value is what was measured of the model as it is attached, in sentences for the user.

        Args:
            linears: the result of `linears()` with which the adapter was made.
            plan: what is kept of a forward pass for backward.
            memory: bytes to keep free on the device for what is not there yet; see `keep_free`.
        """

    def keep_free(self, memory: int) -> None:
        """Leave so many bytes free on the device whenever the attached model is loaded from now on."""

    def reload(self) -> None:
        """Bring the attached model to the device again, after another one may have displaced it."""

    def change_plan(self, plan: Plan) -> None:
        """Follow another plan from the next forward pass on; inside `attached`, between steps."""

    def training(self) -> AbstractContextManager[None]:
        """Encloses forward and backward: enables autograd and what else they need; restored on exit in any case."""

    def prepared(
        self, conditions: Mapping[str, torch.Tensor], size_FHW: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Conditions as `velocity` takes them, on the CPU: computed once, and in a thread while the model computes.

        Args:
            conditions: a tensor (B, ...) for each of the family's kinds, on the CPU; those that are optional may be
                missing. Zero rows at the end of a text are
                padding; the prediction is that for texts padded to the family's text length.
            size_FHW: frames, rows and columns of the latents they belong to.
        """

    def velocity(
        self, x_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Predicted velocity noise - x0, of x's shape, in fp32; only inside `attached`.

        Args:
            x_BCFHW: noisy latents, fp32.
            t_B: noise levels in 0..1, fp32; frames of which `known_BF` of the conditions says that they are known have
                noise level 0.
            conditions: what `prepared` gave, for latents of x's size.
        """
