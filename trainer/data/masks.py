"""Loss masks: a grey picture of the same name, or the picture's own alpha channel, scaled to the grid of the latent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..base.errors import UserError
from . import pictures
from .opening import undisturbed


@dataclass(frozen=True, slots=True)
class Mask:
    """The file of a loss mask: white is trained on, black is not, grey is a weight in between."""

    path: Path
    name: str
    digest: str
    """Of the file's bytes."""
    is_alpha: bool
    """The alpha channel of the picture itself."""


def read(mask: Mask, grid_HW: tuple[int, int]) -> torch.Tensor:
    """mask_HW, fp32 in 0..1, cropped as the picture is and averaged over the pixels of each latent position.

    Args:
        grid_HW: rows and columns of the latent.

    Raises:
        UserError: the mask is damaged, or black wherever the picture is trained on.
        OSError: the file is missing or unreadable.
    """
    grey = grey_of(mask)
    height, width = grid_HW
    mask_HW = torch.from_numpy(pictures.fit(grey, width, height, Image.Resampling.BOX).astype(np.float32) / 255)
    if not mask_HW.any():
        raise UserError(f"{mask.name} is black wherever the picture is trained on; paint white what is to be learned.")
    return mask_HW


def grey_of(mask: Mask) -> Image.Image:
    """The weights in full size, mode L.

    Raises:
        UserError: the mask is damaged.
        OSError: the file is missing or unreadable.
    """
    data = mask.path.read_bytes()
    return pictures.open_alpha(data, mask.name) if mask.is_alpha else _open(data, mask.name)


def check(data: bytes, name: str) -> None:
    """Raises UserError if the mask is damaged or all black."""
    if _open(data, name).getextrema()[1] == 0:
        raise UserError(f"{name} is black all over; paint white what is to be learned.")


def fits(mask_size: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a mask and a picture of these (width, height) have one aspect ratio, up to a pixel of rounding."""
    (mask_width, mask_height), (width, height) = mask_size, size
    return abs(mask_width * height - width * mask_height) <= max(width, height, mask_width, mask_height)


@undisturbed
def _open(data: bytes, name: str) -> Image.Image:
    with pictures.open_image(data, name) as image:
        image.load()
        return pictures.to_rgb(ImageOps.exif_transpose(image), "black", is_shown=False).convert("L")
