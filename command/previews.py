"""Videos of prompts: those that a run makes on its way, and what `wantune sample` needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image

from ..trainer.base.errors import content_hash
from ..trainer.base.files import replacing
from ..trainer.base.refusals import in_a_sentence
from ..trainer.job.settings import PreviewPlan
from ..trainer.media.strips import strip
from ..trainer.media.videos import write_mp4
from ..trainer.model.backend import Denoiser
from ..trainer.model.conditions import TEXT
from ..trainer.model.family import ModelFamily
from ..trainer.runs.events import Noted, Previewed
from ..trainer.training import length
from ..trainer.wan_diffusers.sampling import Sampling
from ..trainer.wan_diffusers.sampling import sample as sampled
from .engine import Lazy

DECODING = 7000
"""Values that the VAE has at once for each pixel of a frame when it decodes (ComfyUI, comfy/sd.py: Wan's VAEs)."""


def sampling_of(plan: PreviewPlan) -> Sampling:
    """How the videos are sampled.

    Raises:
        UserError: diffusers has no such sampler.
    """
    return Sampling(width=plan.width, height=plan.height, frames=plan.frames, seed=plan.seed, steps=plan.steps,
                    cfg=plan.cfg, shift=plan.shift, sampler=plan.sampler_name)


class Texts:
    """Prompts that are encoded before the model in training takes the device."""

    def __init__(self, plan: PreviewPlan, encoder: Lazy) -> None:
        self.positive = [encoder.encode(prompt)[None] for prompt in plan.prompts]
        """text_BLD each."""
        self.negative_BLD = encoder.encode(plan.negative)[None]
        self.digest = content_hash(encoder.id, plan.prompts, plan.negative)


class Previewer:
    """The `Previews` of trainer/training/run.py, for models that are given no frames.

    Args:
        codec: the VAE; it is loaded for the first video and leaves afterwards.
    """

    def __init__(self, plan: PreviewPlan, texts: Texts, denoiser: Denoiser, codec: Lazy) -> None:
        self._plan, self._texts, self._denoiser, self._codec = plan, texts, denoiser, codec
        self._sampling = sampling_of(plan)
        self._sampling.check(denoiser.family)
        self.folder: Path | None = None
        """That of the run, once it is open."""

    @property
    def tokens(self) -> int:
        """Of one video."""
        return self._denoiser.family.num_tokens(self._sampling)

    @property
    def decoding(self) -> int:
        """Bytes for the VAE's activations, about."""
        return DECODING * self._plan.width * self._plan.height * self._denoiser.compute_dtype.itemsize

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether videos are made after this step; also at the end."""
        return step == total_steps or length.is_due(
            step, self._plan.every_steps, self._plan.every_epochs, steps_per_epoch)

    def make(self, step: int, name: str, lora: Callable[[], Mapping] | None) -> tuple[Previewed | Noted, ...]:
        """Write `samples/<name>_<prompt>.mp4` of each prompt, counted from 0, and its strip as `.jpg`."""
        latents = [sampled(self._denoiser, {TEXT.name: text_BLD}, self._texts.negative_BLD, self._sampling)
                   for text_BLD in self._texts.positive]
        files = []
        for number, latent_BCFHW in enumerate(latents):
            path = self.folder / "samples" / f"{name}_{number}.mp4"
            write_video(path, self._codec, latent_BCFHW[0], self._denoiser.family)
            files.append(path.relative_to(self.folder).as_posix())
        self._codec.release()
        settings = content_hash(self._texts.digest, repr(self._sampling), self._denoiser.id)
        return (Previewed(step, name, tuple(files), sampled=settings),)


def write_video(path: Path, codec: Lazy, latent_CFHW: torch.Tensor, family: ModelFamily) -> None:
    """Decode a latent and write it as mp4, with a strip of its frames beside it, which lists of runs show.

    Raises:
        UserError: there is too little memory, or a file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_FHW3 = codec.decode(latent_CFHW, path.stem)
    write_mp4(path, pixels_FHW3, family.fps)
    picture = path.with_suffix(".jpg")
    with in_a_sentence(f"{picture.name} cannot be written", path.parent), replacing(picture) as unfinished:
        Image.fromarray(strip(pixels_FHW3)).save(unfinished, "JPEG", quality=90)
