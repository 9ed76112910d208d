"""Sampling a short video of a prompt, and decoding it.

There are two ways to sample. `sample` is ComfyUI's own, for MODELs: it loads and patches them and may unload others, so
that training has to step aside for it. `sample_in_training` needs no memory and no time for that: it gives ComfyUI's
euler sampler and noise levels the denoiser that is trained.

Shape legend: B batch, C channels, F frames, H height, W width, L tokens and D width of the text, 3 colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

MAX_FRAMES = 1025
"""The longest video that our nodes sample."""

EULER, SIMPLE = "euler", "simple"
"""The sampler and the scheduler of `sample_in_training`."""

TO_THE_END = 10000
"""The end_at_step of KSampler Advanced with which it goes on to the end."""

_RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What an empty LATENT of newer versions of ComfyUI says of itself, by which it is made to suit the model."""


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
    sampler_name: str = EULER
    """As in KSampler, like `scheduler`."""
    scheduler: str = SIMPLE
    switch_at_step: int = 0
    """The step from which the low-noise expert samples; 0 where there is none."""
    latent: Mapping | None = None
    """LATENT as KSampler gets it; None for an empty one."""


def family_like(model) -> ModelFamily:
    """A family with the latents of a MODEL, which may also be one that cannot be trained."""
    return families.with_channels(model.get_model_object("latent_format").latent_channels)


def latent_shape(family: ModelFamily, size: Size) -> tuple[int, ...]:
    """(1, C, F, H, W) of the latent of one video."""
    return 1, family.latent_channels, *family.latent_size(size)


def check_frames(frames: int, most: int | None = None) -> None:
    """Raises UserError for a number of frames that the family cannot make, or that is above `most`.

    Give `most` where the node's own `validate_inputs` keeps ComfyUI from holding frames to the widget's limits.
    """
    family = families.DEFAULT  # a node may not know the model yet
    stride = family.stride_FHW[0]
    if not family.takes(frames) or (most is not None and frames > most):
        limits = "" if most is None else f" from 1 to {most}"
        raise UserError(f"frames is {frames}; {family.series} takes {stride}n+1 frames{limits}, for example "
                        f"{4 * stride + 1}.")


def check(model, model_low, sampling: Sampling) -> None:
    """Raises UserError where MODELs, steps and sizes do not suit each other.

    Args:
        model_low: None where one model samples all steps.
    """
    low, switch, steps = model_low is not None, sampling.switch_at_step, sampling.steps
    if low and not 0 < switch < steps:
        raise UserError(f"switch_at_step is {switch} of {steps} steps, but model_low is connected, which samples from "
                        "that step on; give a step between the first and the last, as your two samplers have it.")
    if switch and not low:
        raise UserError(f"switch_at_step is {switch}, but no model_low is connected, which samples from that step on; "
                        "connect it, or set switch_at_step to 0.")
    family, multiple = family_like(model), family_like(model).side_multiple
    for name, side in (("width", sampling.width), ("height", sampling.height)):
        if side % multiple:
            raise UserError(f"{name} is {side}; the model takes multiples of {multiple}, the nearest is "
                            f"{max(1, round(side / multiple)) * multiple}.")
    if sampling.latent is not None:
        _check_latent(family, tuple(_latent(model, sampling)["samples"].shape), sampling)


def _check_latent(family: ModelFamily, shape: tuple[int, ...], sampling: Sampling) -> None:
    expected = latent_shape(family, sampling)
    if shape == expected:
        return
    if len(shape) == 5 and (shape[0], shape[1]) == expected[:2]:
        of_time, rows, columns = family.stride_FHW
        is_one = f"is one of {shape[4] * columns} x {shape[3] * rows} with {(shape[2] - 1) * of_time + 1} frames"
    else:
        is_one = f"has the shape {shape}, and {expected} is needed"
    raise UserError(f"The latent {is_one}, but width, height and frames are {sampling.width} x {sampling.height} with "
                    f"{sampling.frames}; set them as in the node that makes the latent.")


def check_vae(vae, family: ModelFamily) -> None:
    """Raises UserError for a VAE whose latents are not those of the family."""
    channels = getattr(vae, "latent_channels", family.latent_channels)  # a VAE of another pack may not say it
    if channels != family.latent_channels:
        raise UserError(f"The VAE has latents of {channels} channels, the model of {family.latent_channels}; connect "
                        "the VAE that belongs to the model.")


def connected(*prompts: list | None) -> list[list]:
    """The CONDITIONING of those prompts that a node was given."""
    return [prompt for prompt in prompts if prompt is not None]


def sample(model, model_low, positive: list, sampling: Sampling, callback: Callable | None = None) -> torch.Tensor:
    """latent_BCFHW of one prompt, bit for bit as KSampler makes it, or two KSampler Advanced one after the other.

    Those of a pair: the first adds noise and hands on what is left of it at `switch_at_step`, with which the second
    goes on to the end. They have the same seed, which only samplers that add noise on the way use for the second.

    Args:
        model: a MODEL.
        model_low: that of the low-noise expert, or None.
        positive: CONDITIONING.
        callback: called after each step.
    """
    latent = _latent(model, sampling)
    noise_BCFHW = comfy.sample.prepare_noise(latent["samples"], sampling.seed, latent.get("batch_index"))

    def sampled(model, noise_BCFHW: torch.Tensor, start_BCFHW: torch.Tensor, **steps) -> torch.Tensor:
        return comfy.sample.sample(
            model, noise_BCFHW, sampling.steps, sampling.cfg, sampling.sampler_name, sampling.scheduler, positive,
            sampling.negative, start_BCFHW, noise_mask=latent.get("noise_mask"), callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=sampling.seed, **steps)

    if model_low is None:
        return sampled(model, noise_BCFHW, latent["samples"])
    switch = sampling.switch_at_step
    halfway_BCFHW = sampled(model, noise_BCFHW, latent["samples"], start_step=0, last_step=switch)
    return sampled(model_low, torch.zeros_like(halfway_BCFHW, device="cpu"), halfway_BCFHW, start_step=switch,
                   last_step=TO_THE_END, disable_noise=True, force_full_denoise=True)


def _latent(model, sampling: Sampling) -> Mapping:
    """LATENT from which a MODEL samples, with the channels that it takes."""
    given = sampling.latent
    if given is None:
        shape = latent_shape(family_like(model), sampling)
        return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}
    ratios = {name: given[name] for name in _RATIOS if name in given}
    return {**given, "samples": comfy.sample.fix_empty_latent_channels(model, given["samples"], **ratios)}


def sampling_memory(model, sampling: Sampling) -> int:
    """Bytes beside the weights without which ComfyUI does not sample, by its own estimate."""
    return int(model.model.memory_required(list(latent_shape(family_like(model), sampling))))


def sigmas_of(model, sampling: Sampling) -> torch.Tensor:
    """(steps + 1,) the noise levels at which a MODEL is sampled, from its model_sampling, and 0."""
    return comfy.samplers.KSampler(
        model, steps=sampling.steps, device=torch.device("cpu"), sampler=sampling.sampler_name,
        scheduler=sampling.scheduler, model_options=model.model_options).sigmas


def sigmas_in_training(shift: float, steps: int) -> torch.Tensor:
    """(steps + 1,) the noise levels of `sample_in_training`, as ModelSamplingSD3 and KSampler make them, and 0."""
    flow = comfy.model_sampling.ModelSamplingDiscreteFlow()
    flow.set_parameters(shift=shift)
    return comfy.samplers.calculate_sigmas(flow, SIMPLE, steps)


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
