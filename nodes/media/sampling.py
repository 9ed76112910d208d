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
import comfy.latent_formats
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ...trainer.base.errors import UserError
from ..backend.denoiser import ComfyDenoiser

# Wan2.1's numbers; nothing else in nodes/media has them.
LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8
"""Of height, and of width."""
FRAMES_PER_LATENT = 4
"""The first frame has a latent frame of its own."""
FPS = 16
LATENT_FORMAT = comfy.latent_formats.Wan21
"""How latents are normalised between model and VAE."""

MAX_FRAMES = 1025
"""The longest video that our nodes sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What is the same for all videos that are compared with each other."""

    negative: list
    """CONDITIONING."""
    width: int
    """Of the video, in pixels; so is height."""
    height: int
    frames: int
    seed: int
    steps: int
    cfg: float


def latent_shape(width: int, height: int, frames: int) -> tuple[int, ...]:
    """(B, C, F, H, W) of the latent of one video of width x height pixels."""
    latent_frames = (frames - 1) // FRAMES_PER_LATENT + 1
    return 1, LATENT_CHANNELS, latent_frames, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def check_frames(frames: int, most: int | None = None) -> None:
    """Raises UserError for a number of frames that Wan cannot make, or that is above `most`.

    Give `most` where the node's own `validate_inputs` keeps ComfyUI from holding frames to the widget's limits.
    """
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT or (most is not None and frames > most):
        limits = "" if most is None else f" from 1 to {most}"
        raise UserError(f"frames is {frames}; Wan takes {FRAMES_PER_LATENT}n+1 frames{limits}, for example 17.")


def connected(*prompts: list | None) -> list[list]:
    """The CONDITIONING of those prompts that a node was given."""
    return [prompt for prompt in prompts if prompt is not None]


def sample(
    model, positive: list, sampling: Sampling, sampler_name: str, scheduler: str, callback: Callable
) -> torch.Tensor:
    """latent_BCFHW of one prompt, as KSampler makes it from Empty HunyuanVideo Latent, bit for bit.

    Args:
        positive: CONDITIONING.
        callback: called after each step.
    """
    shape = latent_shape(sampling.width, sampling.height, sampling.frames)
    latent_BCFHW = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    noise_BCFHW = comfy.sample.prepare_noise(latent_BCFHW, sampling.seed)
    return comfy.sample.sample(
        model, noise_BCFHW, sampling.steps, sampling.cfg, sampler_name, scheduler, positive, sampling.negative,
        latent_BCFHW, callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=sampling.seed)


def sample_in_training(denoiser: ComfyDenoiser, positive: list, sampling: Sampling, shift: float) -> torch.Tensor:
    """latent_BCFHW of one prompt, sampled (euler, simple) from the model in training with the adapter that is on.

    Args:
        positive: CONDITIONING.
        shift: of the noise levels, as in ModelSamplingSD3.
    """
    positive_BLD, negative_BLD = (text[0][0].float().clone().to(denoiser.device)
                                  for text in (positive, sampling.negative))

    def denoised(x_BCFHW: torch.Tensor, sigma_B: torch.Tensor, **_arguments) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        velocity = denoiser.velocity(x_BCFHW, sigma_B, positive_BLD)
        if sampling.cfg != 1:
            without = denoiser.velocity(x_BCFHW, sigma_B, negative_BLD)
            velocity = without + sampling.cfg * (velocity - without)
        return x_BCFHW - sigma_B.view(-1, 1, 1, 1, 1) * velocity

    flow = comfy.model_sampling.ModelSamplingDiscreteFlow()
    flow.set_parameters(shift=shift)
    sigmas = comfy.samplers.calculate_sigmas(flow, "simple", sampling.steps)
    shape = latent_shape(sampling.width, sampling.height, sampling.frames)
    noise_BCFHW = torch.randn(shape, generator=torch.Generator().manual_seed(sampling.seed))
    with denoiser.training(), torch.no_grad():
        start_BCFHW = (noise_BCFHW * sigmas[0]).to(denoiser.device)
        latent_BCFHW = comfy.k_diffusion.sampling.sample_euler(
            denoised, start_BCFHW, sigmas.to(denoiser.device), disable=True)
    with torch.inference_mode():  # as ComfyUI's own
        return LATENT_FORMAT().process_out(latent_BCFHW.clone())


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
