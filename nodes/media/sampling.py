"""Sampling a short video of a prompt, and decoding it.

There are two ways to sample. `sample` is ComfyUI's own, for a MODEL: it loads and patches the model and may unload it.
That must not happen in the middle of training, so `sample_in_training` gives ComfyUI's euler sampler and noise levels
the denoiser that is trained.

Shape legend: B batch, C channels, F frames, H height, W width, L tokens and D width of the text, 3 colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ...trainer.base.errors import UserError
from ...trainer.model import families
from ...trainer.model.family import ModelFamily, Size
from ..backend.denoiser import ComfyDenoiser

FAMILY = families.DEFAULT
"""The family whose videos are sampled, but in training, where the model tells its own."""

MAX_FRAMES = 1025
"""The longest video that our nodes sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What is the same for all videos that are compared with each other."""

    negative: list
    """CONDITIONING."""
    width: int
    """Of the video, in pixels, like `height`."""
    height: int
    frames: int
    seed: int
    steps: int
    cfg: float


def latent_shape(family: ModelFamily, size: Size) -> tuple[int, ...]:
    """(1, C, F, H, W) of the latent of one video."""
    return 1, family.latent_channels, *family.latent_size(size)


def check_frames(frames: int, most: int | None = None) -> None:
    """Raises UserError for a number of frames that the family cannot make, or that is above `most`.

    Give `most` where the node's own `validate_inputs` keeps ComfyUI from holding frames to the widget's limits.
    """
    stride = FAMILY.stride_FHW[0]
    if not FAMILY.takes(frames) or (most is not None and frames > most):
        limits = "" if most is None else f" from 1 to {most}"
        raise UserError(f"frames is {frames}; {FAMILY.series} takes {stride}n+1 frames{limits}, for example "
                        f"{4 * stride + 1}.")


def connected(*prompts: list | None) -> list[list]:
    """The CONDITIONING of those prompts that a node was given."""
    return [prompt for prompt in prompts if prompt is not None]


def sample(
    model, positive: list, sampling: Sampling, sampler_name: str, scheduler: str, callback: Callable
) -> torch.Tensor:
    """latent_BCFHW of one prompt, as KSampler makes it from Empty HunyuanVideo Latent, bit for bit.

    Args:
        model: a MODEL.
        positive: CONDITIONING.
        sampler_name, scheduler: as in KSampler.
        callback: called after each step.
    """
    latent_BCFHW = torch.zeros(latent_shape(FAMILY, sampling), device=comfy.model_management.intermediate_device())
    noise_BCFHW = comfy.sample.prepare_noise(latent_BCFHW, sampling.seed)
    return comfy.sample.sample(
        model, noise_BCFHW, sampling.steps, sampling.cfg, sampler_name, scheduler, positive, sampling.negative,
        latent_BCFHW, callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=sampling.seed)


def sigmas_in_training(shift: float, steps: int) -> torch.Tensor:
    """(steps + 1,) the noise levels of `sample_in_training`, as ModelSamplingSD3 and KSampler make them, and 0."""
    flow = comfy.model_sampling.ModelSamplingDiscreteFlow()
    flow.set_parameters(shift=shift)
    return comfy.samplers.calculate_sigmas(flow, "simple", steps)


def sample_in_training(denoiser: ComfyDenoiser, positive: list, sampling: Sampling, shift: float) -> torch.Tensor:
    """latent_BCFHW of one prompt, sampled (euler, simple) from the model in training with the adapter that is on.

    Args:
        positive: CONDITIONING.
        shift: of the noise levels, as in ModelSamplingSD3.
    """
    shape = latent_shape(denoiser.family, sampling)
    with_text, without_text = (_prepared(denoiser, text, shape) for text in (positive, sampling.negative))

    def denoised(x_BCFHW: torch.Tensor, sigma_B: torch.Tensor, **_arguments) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        velocity = denoiser.velocity(x_BCFHW, sigma_B, with_text)
        if sampling.cfg != 1:
            without = denoiser.velocity(x_BCFHW, sigma_B, without_text)
            velocity = without + sampling.cfg * (velocity - without)
        return x_BCFHW - sigma_B.view(-1, 1, 1, 1, 1) * velocity

    sigmas = sigmas_in_training(shift, sampling.steps)
    generator = torch.Generator().manual_seed(sampling.seed)
    noise_BCFHW = torch.randn(shape, generator=generator)
    with denoiser.training(), torch.no_grad():
        start_BCFHW = (noise_BCFHW * sigmas[0]).to(denoiser.device)
        latent_BCFHW = comfy.k_diffusion.sampling.sample_euler(
            denoised, start_BCFHW, sigmas.to(denoiser.device), disable=True)
    with torch.inference_mode():  # ComfyUI's own sampling gives inference tensors, too
        return denoiser.family.denormalize(latent_BCFHW.clone())


def _prepared(denoiser: ComfyDenoiser, prompt: list, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    text_BLD = prompt[0][0].float().clone()  # it was made in inference mode
    return {name: tensor.to(denoiser.device)
            for name, tensor in denoiser.prepared({"text": text_BLD}, shape[2:]).items()}


def decode(vae, latent_BCFHW: torch.Tensor, name: str) -> np.ndarray:
    """pixels_FHW3 uint8 of one video.

    Args:
        vae: the graph's VAE.
        name: of the clip, for the sentence of an error.

    Raises:
        UserError: the pixels hold NaN or infinity.
    """
    with torch.inference_mode():
        images_BFHW3 = vae.decode(latent_BCFHW)
        pixels_FHW3 = images_BFHW3.reshape(-1, *images_BFHW3.shape[-3:]).float().cpu()
    if not torch.isfinite(pixels_FHW3).all():
        raise UserError(f"The clip of {name} holds values that are not numbers (NaN or infinity); the sampler or the "
                        "VAE overflowed, so try the VAE in fp32, or a lower strength.")
    return (pixels_FHW3 * 255).round().clamp(0, 255).byte().numpy()
