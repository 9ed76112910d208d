"""What the trainer must know of a video model: one frozen record per model family.

A family is defined in a file of its own (wan21.py) and registered in families.py. All code that depends on the model
asks the record: which frame counts and sizes are trained on, how latents are normalised, which Linears can get an
adapter, which conditions the model takes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from ..base.errors import UserError
from ..settings.data import NO_FRAME
from .conditions import ConditionKind


class Size(Protocol):
    """Size of a video in frames and pixels, such as data.buckets.Bucket."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """A family of video models that share VAE, conditions and layout, such as Wan2.1 text-to-video 1.3B and 14B."""

    name: str
    """Its name in settings and in a run, such as "Wan2.1 T2V"."""
    series: str
    """Its name in messages to the user, such as "Wan"."""
    architecture: str
    """Its name in LoRA metadata (kohya's ss_base_model_version), such as "wan2.1"."""
    implementation: str
    """URL of the reference implementation."""
    fps: int
    """Frames per second that the model generates, and at which clips are read."""
    stride_FHW: tuple[int, int, int]
    """Pixel frames, rows and columns per latent frame, row and column (the VAE's compression); the first frame has a
    latent frame to itself."""
    patch_FHW: tuple[int, int, int]
    """Latent frames, rows and columns per token (the transformer's patch size)."""
    latent_mean: tuple[float, ...]
    """Mean of each channel of the VAE's latents; `normalize` uses it and `latent_std`."""
    latent_std: tuple[float, ...]
    text_length: int
    """Tokens to which the model pads a text; it was not trained on longer ones."""
    text_width: int
    """Width D of the text embeddings."""
    time_scale: float
    """The model's timestep input is the noise level t in 0..1 times this."""
    blocks: str
    """Name of the model's list of transformer blocks; a block is <blocks>.<number>."""
    trained: tuple[str, ...]
    """The Linears of each block that can get an adapter, by their name within it."""
    conditions: tuple[ConditionKind, ...]
    """The model's inputs besides the noisy latent and its noise level."""
    frame_conditions: tuple[ConditionKind, ...] = ()
    """What a dataset holds for those models that share this one's VAE, by its setting `condition`."""
    frames_given: tuple[str, ...] = (NO_FRAME,)
    """The values of a dataset's setting `condition` with which it suits the model."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return len(self.latent_mean)

    @property
    def side_multiple(self) -> int:
        """Pixels; heights and widths of buckets are multiples of it."""
        return max(stride * patch for stride, patch in zip(self.stride_FHW[1:], self.patch_FHW[1:], strict=True))

    @property
    def values_per_token(self) -> int:
        """Latent values per token."""
        frames, rows, columns = self.patch_FHW
        return self.latent_channels * frames * rows * columns

    def kinds(self, condition: str) -> tuple[ConditionKind, ...]:
        """The conditions that a dataset for this family may hold, of one value of its setting `condition`."""
        always = tuple(kind for kind in self.conditions if kind not in self.frame_conditions)
        return (*always, *(kind for kind in self.frame_conditions if condition in kind.given))

    def shares_latents_with(self, other: ModelFamily) -> bool:
        """Whether clips are read and encoded for both alike."""
        return all(getattr(self, name) == getattr(other, name)
                   for name in ("fps", "stride_FHW", "patch_FHW", "latent_mean", "latent_std"))

    def latent_size(self, size: Size) -> tuple[int, int, int]:
        """(frames, rows, columns) of the latent of a video of this size."""
        frames, rows, columns = self.stride_FHW
        return (size.frames - 1) // frames + 1, size.height // rows, size.width // columns

    def num_tokens(self, size: Size) -> int:
        """Tokens that the transformer sees for a video of this size."""
        frames, rows, columns = (latent // patch for latent, patch in
                                 zip(self.latent_size(size), self.patch_FHW, strict=True))
        return frames * rows * columns

    def tokens_before(self, size: Size, kinds: Collection[str]) -> int:
        """Tokens that the transformer sees before those of a video of this size.

        Args:
            kinds: names of the conditions that it is given.
        """
        _, rows, columns = (latent // patch for latent, patch in
                            zip(self.latent_size(size), self.patch_FHW, strict=True))
        return rows * columns * sum(kind.is_frame and kind.name in kinds for kind in self.conditions)

    def takes(self, frames: int) -> bool:
        """Whether a video may have so many frames: one, and then whole latent frames (4n + 1 for Wan)."""
        return frames >= 1 and (frames - 1) % self.stride_FHW[0] == 0

    def check_frames(self, frames: int, name: str = "frame_buckets") -> None:
        """Raises UserError unless the family `takes` so many frames; the message gives the nearest valid number.

        Args:
            name: the setting that holds the number, for the message.
        """
        if not self.takes(frames):
            stride = self.stride_FHW[0]
            nearest = max(1, round((frames - 1) / stride) * stride + 1)
            raise UserError(f"{name} has {frames}; {self.series} takes {stride}n+1 frames, the nearest is {nearest}.")

    def check_condition(self, condition: str) -> None:
        """Raises UserError where no model that shares this one's VAE takes what it gives."""
        taken = dict.fromkeys([*self.frames_given, *(each for kind in self.frame_conditions for each in kind.given)])
        if condition not in taken:
            raise UserError(f'condition is "{condition}"; {self.name} takes {" or ".join(taken)}.')

    def longest_up_to(self, frames: int) -> int:
        """The largest valid number of frames that is at most `frames`."""
        stride = self.stride_FHW[0]
        return (frames - 1) // stride * stride + 1

    def normalize(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """The VAE's latents as the model was trained on them: mean 0 and standard deviation 1 in each channel."""
        mean, std = self._statistics(latent_BCFHW)
        return (latent_BCFHW - mean) / std

    def denormalize(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`: the latents that the VAE decodes."""
        mean, std = self._statistics(latent_BCFHW)
        return latent_BCFHW * std + mean

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
                     for values in (self.latent_mean, self.latent_std))
        return mean, std
