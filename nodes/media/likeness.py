"""How like the training pictures a video looks, to a CLIP vision.

Shape legend: B pictures, F frames, H height, W width, 3 colours, D width of CLIP vision's embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...trainer.base.errors import UserError
from ...trainer.base.out_of_memory import first_line, is_out_of_memory
from ...trainer.encoded.cache import CachedDataset
from ...trainer.encoded.store import read_tensor
from ...trainer.runs.events import BASE, Noted, Previewed
from ...trainer.runs.folder import RunFolder
from ...trainer.runs.measured import measured
from ..backend.fingerprint import fingerprint
from . import sampling as ways
from .measured import motion

FRAMES = 4
"""Of a video, at most, that CLIP vision looks at."""

PICTURES = 8
"""Of the dataset, at most, that a video is compared with."""

Values = tuple[float | None, ...]
"""One for each video; None where it is not finite."""


def check(clip_vision, node: str) -> None:
    """UserError where it is no CLIP vision.

    Args:
        node: at which it is connected.
    """
    if not callable(getattr(clip_vision, "encode_image", None)):
        raise UserError(f"clip_vision of {node} is a {type(clip_vision).__name__}, which looks at no pictures; connect "
                        "Load CLIP Vision, or leave it empty.")


def memory(clip_vision) -> int:
    """Bytes of the device for its weights; four frames at its size take little beside them. 0 for none."""
    patcher = getattr(clip_vision, "patcher", None)
    return 0 if patcher is None else patcher.model_size()


class Likeness:
    """CLIP vision beside pictures of a dataset: of a video, the mean cosine similarity of embeddings over all pairs of
    one of its frames and one picture (CLIP-I of DreamBooth, arXiv:2208.12242, section 4.2).

    The pictures are decoded from the cache, so that the VAE leaves the same traces in both sides; this is done once.

    Args:
        vae: decodes the latents of the dataset.
    """

    def __init__(self, clip_vision, vae, dataset: CachedDataset) -> None:
        self._clip_vision, self._vae, self._dataset = clip_vision, vae, dataset
        self._pictures_D: torch.Tensor | None = None

    @property
    def id(self) -> str:
        """Changes with CLIP vision."""
        patcher = getattr(self._clip_vision, "patcher", None)
        return type(self._clip_vision).__name__ if patcher is None else fingerprint(patcher)

    def of(self, videos: Sequence[np.ndarray]) -> tuple[Values, str]:
        """Of each video, pixels_FHW3 uint8: -1..1, and 1 where all frames and pictures look the same.

        Where there is too little memory, or CLIP vision or the VAE fail, there are none, and a sentence says why.
        """
        try:
            return self._of(videos), ""
        except UserError as error:
            return (), str(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return (), ("The likeness to the training pictures was left out, as there was too little memory for CLIP "
                        "vision; end other programs that use the card, or disconnect clip_vision. "
                        f"({first_line(error)})")

    def _of(self, videos: Sequence[np.ndarray]) -> Values:
        with torch.inference_mode():
            if self._pictures_D is None:
                pictures = [self._directions(self._decoded(index)) for index in spread(
                    len(self._dataset.samples), PICTURES)]
                self._pictures_D = torch.cat(pictures).mean(0)
            # of unit vectors the mean over all pairs is the product of the means
            found = [float(self._directions(video[spread(len(video), FRAMES)]).mean(0) @ self._pictures_D)
                     for video in videos]
        return tuple(value if math.isfinite(value) else None for value in found)

    def _decoded(self, index: int) -> np.ndarray:
        """pixels_1HW3 uint8 of a sample, of a clip its first frame."""
        sample, family = self._dataset.samples[index], self._dataset.family
        latent_CFHW = read_tensor(sample.latent_paths[0])
        return ways.decode(self._vae, family.denormalize(latent_CFHW[None, :, :1]), sample.name)[:1]

    def _directions(self, pixels_BHW3: np.ndarray) -> torch.Tensor:
        """The embedding of each picture, of length 1, (B, D) fp32 on the CPU."""
        images_BHW3 = torch.from_numpy(pixels_BHW3.astype(np.float32) / 255.0)
        embeds = getattr(self._clip_vision.encode_image(images_BHW3), "image_embeds", None)
        if not isinstance(embeds, torch.Tensor) or embeds.ndim not in (2, 3):
            raise UserError(f"The CLIP vision, a {type(self._clip_vision).__name__}, gives no embedding of a picture "
                            "(image_embeds); load another, such as clip_vision_h.safetensors.")
        embeds = embeds.float().cpu()
        embeds_BD = embeds.mean(1) if embeds.ndim == 3 else embeds  # SigLIP gives one for each token
        return torch.nn.functional.normalize(embeds_BD, dim=-1)


class Measures:
    """Measures the previews of one run, and keeps what it found of those without the LoRA.

    Args:
        folder: of the run, whose log tells that too, after an interruption.
        sampled: digest of what the videos are made of but the LoRA; others are not compared.
        likeness: None where that is not measured.
    """

    def __init__(self, folder: Path, sampled: str, likeness: Likeness | None) -> None:
        self._log, self._sampled, self._likeness = RunFolder(folder), sampled, likeness
        self._base: tuple[Values, Values] | None = None

    def likeness(self, step: int, videos: Sequence[np.ndarray]) -> tuple[Values, tuple[Noted, ...]]:
        """Of each video, pixels_FHW3 uint8, and a note where it was left out."""
        if self._likeness is None:
            return (), ()
        found, fault = self._likeness.of(videos)
        return found, (Noted(step, fault),) if fault else ()

    def added(self, made: Previewed, videos: Sequence[np.ndarray], likeness: Values, is_base: bool) -> Previewed:
        """A preview with all that was measured of it."""
        motions = tuple(motion(video) for video in videos if len(video) > 1)
        made = replace(made, motion=motions, likeness=likeness, sampled=self._sampled)
        if is_base:
            self._base = motions, likeness
            return made
        if self._base is None:
            self._base = self._logged_base()
        base_motion, base_likeness = self._base
        return replace(made, base_motion=base_motion, base_likeness=base_likeness)

    def _logged_base(self) -> tuple[Values, Values]:
        for line in self._log.logged():
            if line["event"] == "Previewed" and line.get("name") == BASE and line.get("sampled") == self._sampled:
                found = measured(line)
                return tuple(found["motion"]), tuple(found["likeness"])
        return (), ()


def spread(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count` things, evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
