"""Conditions: the inputs of a video model besides the noisy latent and its noise level, such as the text embeddings.

A sample's conditions are tensors by the name of their kind. Each kind has an encoder of its own, whose `id` is part of
the content key in the cache, and a function that combines the tensors of several samples into those of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..settings.data import BOTH_ENDS, CONTROL_AND_FIRST, FIRST_FRAME

CAPTION, WINDOW, CONTROLLING, SIZE = "caption", "window", "controlling", "size"
"""What a condition is made from: a caption (text), the pixels of the window that is trained on, those of its control
clip in the same window, or the size of its latent alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionKind:
    """One kind of condition of a model family."""

    name: str
    """Its key among the encoders, in `Batch.conditions` and in `Denoiser.velocity`."""
    folder: str
    """Name of its folder in the cache."""
    source: str
    """CAPTION: the encoder gets a caption. WINDOW: it gets pixels_FHW3, as the VAE does. CONTROLLING: likewise, of the
    control clip. SIZE: it gets size_FHW, the frames, rows and columns of the latent."""
    collate: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """Combines the tensors of B samples into one (B, ...), fp32."""
    without: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What stands for a sample's tensor in visits that drop the frames it is given (`condition_dropout`); None where
    that does not concern this kind."""
    is_optional: bool = False
    """Whether the model also takes samples that do not have it."""
    given: tuple[str, ...] = ()
    """The values of a dataset's setting `condition` with which it is made; () where it is made with all."""
    is_frame: bool = False
    """Whether the model sees it as a frame of tokens before those of the video."""


def pad_rows(texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
    """text_BLD, fp32: shorter texts are padded with zero rows to the longest."""
    return torch.nn.utils.rnn.pad_sequence([text_LD.float() for text_LD in texts_LD], batch_first=True)


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, ...), fp32, of tensors of one shape."""
    return torch.stack([tensor.float() for tensor in tensors])


TEXT = ConditionKind(name="text", folder="texts", source=CAPTION, collate=pad_rows)
"""text_BLD: embeddings of the caption, L tokens of width D, without the padding that the model adds."""

CLIP_VISION_ROWS = 257
"""Of one frame: 16 x 16 patches and the class."""

CLIP_VISION_WIDTH = 1280
"""Of the hidden states of the CLIP vision that Wan2.1 was trained with (ViT-H/14)."""

CLIP_VISION = ConditionKind(
    name="clip_vision", folder="clip_visions", source=WINDOW, collate=stack, without=torch.zeros_like,
    given=(FIRST_FRAME, BOTH_ENDS, CONTROL_AND_FIRST))
"""clip_vision_BLD: what CLIP's vision tower says of the first frame (L 257, D 1280), or of the first and last (514).

Dropped it is zero, as aigc-apps/VideoX-Fun drops it: Wan2.1's image-to-video models need the tensor, since without it
ComfyUI reads the text in its place."""

KNOWN = ConditionKind(
    name="known", folder="known", source=SIZE, collate=stack, without=torch.zeros_like, is_optional=True,
    given=(FIRST_FRAME,))
"""known_BF: 1 where a latent frame is given to the model clean, at noise level 0; 0 where it is to be predicted."""


class FirstFrameKnown:
    """The encoder of KNOWN for image-to-video: the first latent frame of a clip is known; a still has none."""

    id = "first frame"

    def encode(self, size_FHW: Sequence[int]) -> torch.Tensor:
        """known_F, fp32."""
        known_F = torch.zeros(size_FHW[0])
        known_F[0] = float(size_FHW[0] > 1)
        return known_F
