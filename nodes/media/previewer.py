"""The short videos that are sampled and written while a run goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...trainer.base.errors import UserError
from ...trainer.base.files import replacing
from ...trainer.base.refusals import in_a_sentence
from ...trainer.runs.events import Previewed
from ...trainer.training import length
from ..backend.denoiser import ComfyDenoiser
from .sampling import Sampling, decode, latent_shape, sample_in_training, sigmas_in_training
from .strips import strip
from .videos import write_mp4

logger = logging.getLogger("wantune")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """What is sampled, and how often; changes nothing of what is learned."""

    positive: list
    """CONDITIONING of each prompt."""
    sampling: Sampling
    shift: float
    """Of the noise levels, as in ModelSamplingSD3."""
    vae: object
    every_epochs: int
    """0 = not by epochs."""
    every_steps: int
    """0 = not by steps."""


def sigmas_of(config: PreviewConfig) -> tuple[float, ...]:
    """The noise levels at which the previews are sampled, falling, with the 0 at the end."""
    return tuple(sigmas_in_training(config.shift, config.sampling.steps).tolist())


class PreviewSize:
    """The `Shown` of trainer/training/memory.py: what of previews counts for memory, before a run has a folder."""

    def __init__(self, config: PreviewConfig, denoiser: ComfyDenoiser) -> None:
        self.config = config
        self._denoiser = denoiser

    @property
    def tokens(self) -> int:
        """Of one video."""
        return self._denoiser.family.num_tokens(self.config.sampling)

    @property
    def decoding(self) -> int:
        """Bytes that the VAE takes for a video by ComfyUI's own estimate, its weights included; 0 if it has none."""
        vae = self.config.vae
        estimate = getattr(vae, "memory_used_decode", None)
        if estimate is None:
            return 0
        shape = latent_shape(self._denoiser.family, self.config.sampling)
        return int(estimate(shape, vae.vae_dtype)) + vae.patcher.model_size()


class Previewer(PreviewSize):
    """The `Previews` of trainer/training/run.py: samples with the model in training, its adapter switched on or off."""

    def __init__(self, config: PreviewConfig, denoiser: ComfyDenoiser, folder: Path) -> None:
        super().__init__(config, denoiser)
        self._folder = folder / "samples"

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether a preview is made after this step; also at the end."""
        return step == total_steps or length.is_due(
            step, self.config.every_steps, self.config.every_epochs, steps_per_epoch)

    def make(self, step: int, name: str) -> Previewed:
        """Write `samples/<name>_<prompt>.mp4` of each prompt, counted from 0, and its strip as `.jpg`."""
        paths = []
        for number, prompt in enumerate(self.config.positive):
            path = self._folder / f"{name}_{number}.mp4"
            pixels_FHW3 = self.sample(prompt, path.stem)
            write_mp4(path, pixels_FHW3, self._denoiser.family.fps)
            picture = path.with_suffix(".jpg")
            with in_a_sentence(f"{picture.name} cannot be written", self._folder), replacing(picture) as unfinished:
                Image.fromarray(strip(pixels_FHW3)).save(unfinished, "JPEG", quality=90)
            paths.append(path.relative_to(self._folder.parent).as_posix())
        return Previewed(step, name, tuple(paths))

    def sample(self, prompt: list, name: str) -> np.ndarray:
        """pixels_FHW3 uint8 of one prompt; where they hold NaN, black ones and a warning.

        A preview that fails must not end the run.
        """
        sampling = self.config.sampling
        latent_BCFHW = sample_in_training(self._denoiser, prompt, sampling, self.config.shift)
        try:
            return decode(self.config.vae, latent_BCFHW, name)
        except UserError:
            logger.warning("The preview %s is black, as it holds NaN or infinity; try the VAE in fp32.", name)
            return np.zeros((sampling.frames, sampling.height, sampling.width, 3), np.uint8)
        finally:
            self._denoiser.reload()  # the VAE may have pushed it off the device
