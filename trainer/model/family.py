"""What a video model is to a trainer: one frozen record for each family, and the list of those that are known.

A family is a file of its own (wan21.py) and its place in families.py. Everything that depends on it asks the record:
which frames and sizes are trained on, how latents are normalised, which Linears get an adapter, what the model is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..base.errors import UserError
from .conditions import ConditionKind


class Size(Protocol):
    """Pixels and frames, such as data.buckets.Bucket."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """A family of video models that share VAE, conditions and layout, such as Wan2.1 text-to-video 1.3B and 14B."""

    name: str
    """What it is called in settings and in a run, such as "Wan2.1 T2V"."""
    series: str
    """What sentences to the user call it, such as "Wan"."""
    architecture: str
    """What LoRA managers call it (kohya's ss_base_model_version), such as "wan2.1"."""
    implementation: str
    """Address of the reference implementation."""
    fps: int
    """Frames a second that it makes, and that clips are read at."""
    stride_FHW: tuple[int, int, int]
    """Frames, rows and columns of pixels for one of the latent; the first frame has a latent frame to itself."""
    patch_FHW: tuple[int, int, int]
    """Latent frames, rows and columns of one token."""
    latent_mean: tuple[float, ...]
    """Of each channel of the VAE's latents; with `latent_std` it normalises them."""
    latent_std: tuple[float, ...]
    text_length: int
    """Tokens to which the model pads a text; it was trained on no longer ones."""
    text_width: int
    """Of the text embeddings."""
    time_scale: float
    """The model is told the noise level t in 0..1 times this."""
    blocks: str
    """Name of the list of its blocks; a block is <blocks>.<number>."""
    trained: tuple[str, ...]
    """The Linears of each block that can get an adapter, by their name within it."""
    conditions: tuple[ConditionKind, ...]
    """What the model is told beside the latent."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return len(self.latent_mean)

    @property
    def side_multiple(self) -> int:
        """Pixels; height and width of what is trained on are multiples of it."""
        return max(stride * patch for stride, patch in zip(self.stride_FHW[1:], self.patch_FHW[1:], strict=True))

    @property
    def values_per_token(self) -> int:
        """Numbers of a latent for each token."""
        frames, rows, columns = self.patch_FHW
        return self.latent_channels * frames * rows * columns

    def latent_size(self, size: Size) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video."""
        frames, rows, columns = self.stride_FHW
        return (size.frames - 1) // frames + 1, size.height // rows, size.width // columns

    def num_tokens(self, size: Size) -> int:
        """Tokens the transformer sees of a video."""
        frames, rows, columns = (latent // patch for latent, patch in
                                 zip(self.latent_size(size), self.patch_FHW, strict=True))
        return frames * rows * columns

    def takes(self, frames: int) -> bool:
        """Whether it can be so many frames: one, and whole latent frames after it."""
        return frames >= 1 and (frames - 1) % self.stride_FHW[0] == 0

    def check_frames(self, frames: int, name: str = "frame_buckets") -> None:
        """Raises UserError unless the family `takes` so many frames; names the nearest number.

        Args:
            name: the input in which the number stands.
        """
        if not self.takes(frames):
            stride = self.stride_FHW[0]
            nearest = max(1, round((frames - 1) / stride) * stride + 1)
            raise UserError(f"{name} has {frames}; {self.series} takes {stride}n+1 frames, the nearest is {nearest}.")

    def longest_up_to(self, frames: int) -> int:
        """The largest number of frames the family takes that is no larger than this."""
        stride = self.stride_FHW[0]
        return (frames - 1) // stride * stride + 1

    def normalize(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """What the VAE gives as the model was trained on it: mean 0 and standard deviation 1 in each channel."""
        mean, std = self._statistics(latent_BCFHW)
        return (latent_BCFHW - mean) / std

    def denormalize(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`: what the VAE decodes."""
        mean, std = self._statistics(latent_BCFHW)
        return latent_BCFHW * std + mean

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
                     for values in (self.latent_mean, self.latent_std))
        return mean, std
