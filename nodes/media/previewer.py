"""The short videos that are sampled and written while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...trainer.base.errors import UserError, content_hash
from ...trainer.base.files import replacing
from ...trainer.base.refusals import in_a_sentence
from ...trainer.encoded.cache import CachedDataset
from ...trainer.lora import made_for
from ...trainer.media.strips import strip
from ...trainer.media.videos import write_mp4
from ...trainer.runs.events import Noted, Previewed
from ...trainer.training import length
from ..backend.applied import apply
from ..backend.aside import aside
from ..backend.carried import bare
from ..backend.denoiser import ComfyDenoiser, linear_sizes
from ..backend.described import described
from ..backend.family import family_of
from ..backend.fingerprint import fingerprint
from . import likeness
from . import sampling as ways
from .likeness import Likeness, Measures, Values
from .sampling import EULER, SIMPLE, Sampling

logger = logging.getLogger("wantune")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """What is sampled, and how often; changes nothing of what is learned, unless the noise levels are those of it.

    Raises:
        UserError: its parts do not suit each other.
    """

    positive: list
    """CONDITIONING of each prompt."""
    sampling: Sampling
    shift: float
    """Of the noise levels, as in ModelSamplingSD3, where there is no `model`."""
    vae: object
    every_epochs: int
    """0 = not by epochs."""
    every_steps: int
    """0 = not by steps."""
    model: object | None = None
    """MODEL as the user samples it, of the high-noise expert where there are two; None for the one in training."""
    model_low: object | None = None
    """MODEL of the low-noise expert."""
    clip_vision: object | None = None
    """CLIP_VISION to compare with the training pictures by; None where that is not done."""

    def __post_init__(self) -> None:
        if self.clip_vision is not None:
            likeness.check(self.clip_vision, "Preview Settings")
        ways.check_frames(self.sampling.frames)
        if self.model is not None:
            ways.check(self.model, self.model_low, self.sampling)
            return
        needing = {"model_low": self.model_low is not None, "latent": self.sampling.latent is not None,
                   "switch_at_step": self.sampling.switch_at_step != 0,
                   "sampler_name": self.sampling.sampler_name != EULER, "scheduler": self.sampling.scheduler != SIMPLE}
        if any(needing.values()):
            given = next(name for name, is_given in needing.items() if is_given)
            raise UserError(f"{given} of Preview Settings needs a model; connect the model as you sample it, or leave "
                            f"{given} as it was.")


def sigmas_of(config: PreviewConfig) -> tuple[float, ...]:
    """The noise levels at which the graph of the previews samples, falling, with the 0 at the end."""
    sampling = config.sampling
    if config.model is None:
        return tuple(ways.sigmas_in_training(config.shift, sampling.steps).tolist())
    high = ways.sigmas_of(config.model, sampling).tolist()
    if config.model_low is None:
        return tuple(high)
    switch = sampling.switch_at_step
    return (*high[:switch], *ways.sigmas_of(config.model_low, sampling).tolist()[switch:])


def is_low_expert(config: PreviewConfig, model) -> bool:
    """Whether a MODEL is the low-noise expert of the previews: it shares its weights with that one only."""
    low = config.model_low
    return low is not None and low.is_clone(model) and not config.model.is_clone(model)


def digest(config: PreviewConfig, to_pictures: Likeness | None) -> str:
    """Changes with prompts, sampler, models and CLIP vision: only previews with the same one are compared."""
    sampling = {field.name: getattr(config.sampling, field.name) for field in fields(config.sampling)}
    models = []
    for model in (config.model, config.model_low):
        if model is not None:
            with bare(model):
                models.append(fingerprint(model))
    of_conditions = described([config.positive, sampling, sigmas_of(config)], torch.nn.Module())
    return content_hash(of_conditions, models, to_pictures and to_pictures.id)


def check(config: PreviewConfig, denoiser: ComfyDenoiser) -> None:
    """Raises UserError where the MODEL to sample with is not one for which the LoRA is trained, or is missing, or where
    the VAE is that of another."""
    family = denoiser.family
    ways.check_vae(config.vae, family)
    if config.model is None:
        if [kind.name for kind in family.conditions] != ["text"]:
            raise UserError(f"Previews of {family.name} need a model in Preview Settings; connect the model as you "
                            "sample it, and the latent.")
        return
    trained = denoiser.linear_sizes()
    for name, model in (("model", config.model), ("model_low", config.model_low)):
        if model is None:
            continue
        with bare(model):
            found = family_of(model)
        sizes = linear_sizes(model)
        if found.name != family.name or any(sizes.get(linear) != size for linear, size in trained.items()):
            told = [f"{of.name} ({made_for.describe_model(each)})" for of, each in ((found, sizes), (family, trained))]
            raise UserError(f"{name} of Preview Settings is {told[0]}, the model in training {told[1]}; connect the "
                            "model that you train, as you sample it.")


def to_pictures_of(dataset: CachedDataset, config: PreviewConfig | None) -> Likeness | None:
    """Measures how like the pictures of a dataset previews look; None where that is not asked for."""
    if config is None or config.clip_vision is None:
        return None
    return Likeness(config.clip_vision, config.vae, dataset)


class PreviewSize:
    """The `Shown` of trainer/training/memory.py: what of previews counts for memory, before a run has a folder."""

    def __init__(self, config: PreviewConfig, denoiser: ComfyDenoiser) -> None:
        self.config = config
        self._denoiser = denoiser

    @property
    def tokens(self) -> int:
        """Of one video that is sampled beside the weights in training; 0 where training steps aside."""
        return self._denoiser.family.num_tokens(self.config.sampling) if self.config.model is None else 0

    @property
    def decoding(self) -> int:
        """Bytes taken while the weights in training may be gone, by ComfyUI's own estimate; 0 if it has none.

        By the VAE with its weights, by CLIP vision, and where training steps aside also by the sampler.
        """
        config, vae = self.config, self.config.vae
        estimate, found = getattr(vae, "memory_used_decode", None), 0
        if estimate is not None:
            shape = ways.latent_shape(self._denoiser.family, config.sampling)
            found = int(estimate(shape, vae.vae_dtype)) + vae.patcher.model_size()
        found = max(found, likeness.memory(config.clip_vision))
        return found if config.model is None else max(found, ways.sampling_memory(config.model, config.sampling))


class Previewer(PreviewSize):
    """The `Previews` of trainer/training/run.py.

    With a MODEL of their own, previews are sampled as ComfyUI samples that with Apply LoRA at strength 1, and training
    steps aside. Without, with the model in training, its adapter switched on or off.

    Args:
        switches: gives a context in which the process computes as it does outside of training.
        is_low: whether the adapter is that of the low-noise expert.
        other: gives the LoRA of the other expert, as it is now; None where there is none yet.
        waiting: the denoiser of the other expert, where both are trained.
        to_pictures: measures the likeness to the training pictures; None where that is not done.
    """

    def __init__(
        self, config: PreviewConfig, denoiser: ComfyDenoiser, folder: Path,
        switches: Callable[[], AbstractContextManager[None]], is_low: bool = False,
        other: Callable[[], Mapping[str, torch.Tensor] | None] = lambda: None,
        waiting: ComfyDenoiser | None = None, to_pictures: Likeness | None = None,
    ) -> None:
        super().__init__(config, denoiser)
        self._folder = folder / "samples"
        self._switches = switches
        self._is_low = is_low
        self._other = other
        self._waiting = () if waiting is None else (waiting,)
        self._measures = Measures(folder, digest(config, to_pictures), to_pictures)

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether a preview is made after this step; also at the end."""
        return step == total_steps or length.is_due(
            step, self.config.every_steps, self.config.every_epochs, steps_per_epoch)

    def make(
        self, step: int, name: str, lora: Callable[[], Mapping[str, torch.Tensor]] | None
    ) -> tuple[Previewed | Noted, ...]:
        """Write `samples/<name>_<prompt>.mp4` of each prompt, counted from 0, and its strip as `.jpg`; measure them."""
        names = [f"{name}_{number}" for number in range(len(self.config.positive))]
        paths = []
        videos, likenesses, notes = self._videos(step, names, lora)
        for stem, pixels_FHW3 in zip(names, videos, strict=True):
            path = self._folder / f"{stem}.mp4"
            write_mp4(path, pixels_FHW3, self._denoiser.family.fps)
            picture = path.with_suffix(".jpg")
            with in_a_sentence(f"{picture.name} cannot be written", self._folder), replacing(picture) as unfinished:
                Image.fromarray(strip(pixels_FHW3)).save(unfinished, "JPEG", quality=90)
            paths.append(path.relative_to(self._folder.parent).as_posix())
        made = self._measures.added(Previewed(step, name, tuple(paths)), videos, likenesses, is_base=lora is None)
        return (made, *notes)

    def _videos(
        self, step: int, names: list[str], lora: Callable | None
    ) -> tuple[list[np.ndarray], Values, tuple[Noted, ...]]:
        """pixels_FHW3 uint8 of each prompt, and what `Measures.likeness` gives of them.

        All are sampled before the VAE takes the place of the model, and decoded before CLIP vision takes its place.
        """
        def seen(latents: list[torch.Tensor]) -> tuple:
            videos = [self._decoded(name, latent) for name, latent in zip(names, latents, strict=True)]
            return videos, *self._measures.likeness(step, videos)

        if self.config.model is not None:
            made = lora and lora()
            with aside(self._denoiser, self._waiting), self._switches():
                return seen(self._sampled(made))
        config = self.config
        latents = [ways.sample_in_training(self._denoiser, positive, config.sampling, config.shift)
                   for positive in config.positive]
        try:
            return seen(latents)
        finally:
            self._denoiser.reload()  # the VAE may have pushed it off the device

    def _sampled(self, lora: Mapping[str, torch.Tensor] | None) -> list[torch.Tensor]:
        """latent_BCFHW of each prompt, as ComfyUI samples it; without `lora`, of the MODELs alone."""
        config = self.config
        other = self._other() if lora is not None and config.model_low is not None else None
        high, low = (other, lora) if self._is_low else (lora, other)
        models = [model if found is None else apply(model, found, 1.0)[0]
                  for model, found in ((config.model, high), (config.model_low, low))]
        return [ways.sample(*models, positive, config.sampling) for positive in config.positive]

    def _decoded(self, name: str, latent_BCFHW: torch.Tensor) -> np.ndarray:
        """pixels_FHW3 uint8; where they hold NaN, black ones and a warning: such a preview must not end the run."""
        sampling = self.config.sampling
        try:
            return ways.decode(self.config.vae, latent_BCFHW, name)
        except UserError:
            logger.warning("The preview %s is black, as it holds NaN or infinity; try the VAE in fp32.", name)
            return np.zeros((sampling.frames, sampling.height, sampling.width, 3), np.uint8)
