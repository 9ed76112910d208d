"""Sampling of a video from any Denoiser, with diffusers' schedulers.

"euler" is ComfyUI's KSampler with euler and simple: its noise of a seed, and its noise levels. "uni_pc" is what
diffusers' WanPipeline samples with.

Shape legend: B batch (1 here), C channels, F latent frames, H height, W width, L tokens and D width of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..base.errors import UserError
from ..model.backend import Denoiser
from ..model.conditions import KNOWN, TEXT
from ..model.family import ModelFamily

EULER, UNI_PC = SAMPLERS = ("euler", "uni_pc")

_LEVELS = 1000
"""Noise levels of the model, of which `steps` are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What is the same for all videos that are compared with each other."""

    width: int
    """Of the video, in pixels, like `height`."""
    height: int
    frames: int
    """Of the video."""
    seed: int
    steps: int
    cfg: float
    """Guidance; 1 for none, which takes half the time."""
    shift: float
    """Of the noise levels, as in ModelSamplingSD3; 1 for none."""
    sampler: str = EULER
    """One of SAMPLERS."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler is {self.sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        for name in ("width", "height", "frames", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; choose 1 or more.")
        if not 0 < self.shift < float("inf"):
            raise UserError(f"shift is {self.shift}; choose a number above 0, for example 8.")

    def check(self, family: ModelFamily) -> None:
        """Raises UserError for a size that the family does not make."""
        family.check_frames(self.frames, "frames")
        multiple = family.side_multiple
        for name, side in (("width", self.width), ("height", self.height)):
            if side % multiple:
                raise UserError(f"{name} is {side}; {family.name} makes multiples of {multiple}, the nearest is "
                                f"{max(1, round(side / multiple)) * multiple}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some of the steps, where two experts share them: the second goes on with what the first returns."""

    first: int
    """The step from which this part samples, counted from 0."""
    end: int
    """The step before which it ends."""
    start_BCFHW: torch.Tensor | None = None
    """What the part before returned; None at the first step."""


def sample(
    denoiser: Denoiser, conditions: Mapping[str, torch.Tensor], negative_BLD: torch.Tensor, sampling: Sampling, *,
    clean_BCFHW: torch.Tensor | None = None, part: Part | None = None, done: Callable[[int], None] = lambda step: None
) -> torch.Tensor:
    """latent_BCFHW of one video, normalised, fp32 on the CPU; inside `denoiser.attached`, with the adapter that is on.

    Args:
        conditions: (1, ...) of each of the family's kinds, the prompt's text_BLD among them.
        negative_BLD: the text that guidance leads away from; the other conditions are the same with it.
        clean_BCFHW: a normalised latent whose frames stand where `conditions` say that they are known.
        part: None for all steps.
        done: called after each step with its number, counted from 1.

    Raises:
        UserError: the size does not suit the family, or frames are known and there is no latent of them.
    """
    family = denoiser.family
    sampling.check(family)
    shape = 1, family.latent_channels, *family.latent_size(sampling)
    known_BF = conditions.get(KNOWN.name)
    if known_BF is not None and known_BF.any() and clean_BCFHW is None:
        raise UserError(f"{family.name} is given its first frame without noise, and there is no latent of it; give the "
                        "picture that the video begins with.")
    part = part or Part(first=0, end=sampling.steps)
    x_BCFHW = part.start_BCFHW
    if x_BCFHW is None:
        x_BCFHW = torch.randn(shape, generator=torch.Generator().manual_seed(sampling.seed))
    texts = [conditions[TEXT.name]] + ([negative_BLD] if sampling.cfg != 1 else [])
    prepared = [denoiser.prepared({**conditions, TEXT.name: text_BLD}, shape[2:]) for text_BLD in texts]
    prepared = [{name: value.to(denoiser.device) for name, value in each.items()} for each in prepared]
    scheduler = _scheduler(sampling)
    scheduler.set_begin_index(part.first)
    with denoiser.training(), torch.no_grad():
        x_BCFHW = x_BCFHW.to(denoiser.device)
        for step in range(part.first, part.end):
            t_B = scheduler.sigmas[step][None].to(denoiser.device)
            x_BCFHW = _held(x_BCFHW, clean_BCFHW, known_BF)
            velocity_BCFHW, *without = (denoiser.velocity(x_BCFHW, t_B, each) for each in prepared)
            for without_BCFHW in without:
                velocity_BCFHW = without_BCFHW + sampling.cfg * (velocity_BCFHW - without_BCFHW)
            x_BCFHW = scheduler.step(velocity_BCFHW, scheduler.timesteps[step], x_BCFHW, return_dict=False)[0]
            done(step + 1)
        return _held(x_BCFHW, clean_BCFHW, known_BF).float().cpu()


def _held(
    x_BCFHW: torch.Tensor, clean_BCFHW: torch.Tensor | None, known_BF: torch.Tensor | None
) -> torch.Tensor:
    """The latent with clean frames where they are known."""
    if known_BF is None or clean_BCFHW is None:
        return x_BCFHW
    return torch.where(known_BF[:, None, :, None, None].to(x_BCFHW.device) > 0, clean_BCFHW.to(x_BCFHW), x_BCFHW)


def _scheduler(sampling: Sampling):
    """A scheduler of diffusers with the noise levels set."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if sampling.sampler == UNI_PC:
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=_LEVELS,
            flow_shift=sampling.shift)
        scheduler.set_timesteps(sampling.steps)
        return scheduler
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=_LEVELS, shift=sampling.shift)
    # ComfyUI's "simple" (comfy/samplers.py, simple_scheduler); the scheduler shifts them
    scheduler.set_timesteps(sigmas=[1 - int(step * _LEVELS / sampling.steps) / _LEVELS
                                    for step in range(sampling.steps)])
    return scheduler
