"""Flow matching as Wan2.1 was trained: pure functions; training and evaluation call the same loss.

Rectified flow (Liu et al., arXiv:2209.03003) with logit-normal timesteps (Esser et al.,
arXiv:2403.03206, section 3.1), which the Wan report (arXiv:2503.20314) uses too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch

from ..base.errors import content_hash
from ..model.backend import Denoiser
from ..model.conditions import KNOWN
from ..settings.training import AS_SAMPLED, ObjectiveConfig

PLAIN = ObjectiveConfig()
"""The recipe of the preset "seed article": logit-normal noise levels without shift, unweighted MSE."""

_EDGE = 2.0**-24
"""Noise levels stay this far from 0 and 1: 1 - 2^-24 is the largest fp32 number below 1."""


def generator(*key: object) -> torch.Generator:
    """A generator seeded by a hash of the key; on the CPU, so that the numbers do not depend on the device."""
    return torch.Generator().manual_seed(int(content_hash(*key)[:15], 16))


def sample_timesteps(
    config: ObjectiveConfig, batch_size: int, generator: torch.Generator, num_tokens: int = 0, is_clip: bool = False
) -> torch.Tensor:
    """Noise levels t_B in (0, 1), fp32 on the CPU.

    Inverse transform sampling: t is the distribution's quantile function of u, uniform in (0, 1). So min_t..max_t is
    an interval of u, and the noise levels of a step can be spread evenly (one u in each of batch_size equal parts).

    Args:
        num_tokens: of one sample in the batch's bucket, for `resolution_shift`.
        is_clip: whether the samples have several frames.
    """
    return timesteps_of(config, sample_uniform(config, batch_size, generator), num_tokens, is_clip)


def sample_uniform(config: ObjectiveConfig, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` numbers u in [0, 1), fp64: independent, or stratified (one in each of `count` equal parts, shuffled)."""
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return (torch.randperm(count, generator=generator) + u) / count if config.stratified else u


def timesteps_of(
    config: ObjectiveConfig, u_B: torch.Tensor, num_tokens: int = 0, is_clip: bool = False
) -> torch.Tensor:
    """Noise levels t_B, fp32, of uniform numbers u_B, with the distribution restricted to the window of their kind."""
    least, most = config.bounds(is_clip)
    low, high = (_inverse(config, num_tokens, t) for t in (least, most))
    t_B = quantile(config, low + (high - low) * u_B, num_tokens).float()
    # rounding of u may leave an interval that has hardly any probability; and t must be neither 0 nor 1
    return t_B.clamp(max(least, _EDGE), min(most, 1 - _EDGE))


def quantile(config: ObjectiveConfig, u: torch.Tensor, num_tokens: int = 0) -> torch.Tensor:
    """The quantile function: the t below which a share u (fp64, in 0..1) of the draws lies, ignoring windows.

    logit_normal: sigmoid(mean + std z), z standard normal (arXiv:2403.03206, equation 19).
    mode: f(u) = 1 - u - s (cos(pi u / 2)^2 - 1 + u) (same paper, equation 20), mirrored to rise with u.
    beta: the inverse of Beta(a, b)'s distribution function. uniform: u itself.
    as sampled: linear between the sampler's own noise levels, so that each of its steps, from one level to the next,
    gets the same share of the draws, and all levels between the two the same chance: the sampler asks the model once a
    step and takes the answer for the whole of it. With many steps of shift s this is `uniform` under the shift s.
    All others are then shifted: t becomes shift t / (1 + (shift - 1) t) (same paper, section 5.3.2).
    """
    if config.timesteps == "logit_normal":
        t = torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(u))
    elif config.timesteps == "mode":
        falling = 1 - u  # f falls with its argument
        t = 1 - falling - config.mode_scale * (torch.cos(math.pi / 2 * falling).square() - 1 + falling)
    elif config.timesteps == "beta":
        from scipy.special import betaincinv  # imports slowly; before 1.12 it is wrong for large a or b

        t = torch.from_numpy(betaincinv(config.beta_a, config.beta_b, u.numpy()))
    elif config.timesteps == AS_SAMPLED:
        return _between(torch.tensor(config.sigmas[::-1], dtype=torch.float64), u)
    else:
        t = u
    shift = config.shift * (_resolution_shift(num_tokens) if config.resolution_shift else 1.0)
    return shift * t / (1 + (shift - 1) * t)


def sample_noise(
    latent_BCFHW: torch.Tensor, generator: torch.Generator, offset: float = 0.0
) -> torch.Tensor:
    """Standard normal noise of the latent's shape, drawn on the CPU so that every device sees the same.

    Args:
        offset: standard deviation of further noise that is constant over each channel of a sample
            (crosslabs.org/blog/diffusion-with-offset-noise).
    """
    noise = torch.randn(latent_BCFHW.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn((*latent_BCFHW.shape[:2], 1, 1, 1), generator=generator)
    return noise.to(latent_BCFHW.device)


def interpolate(latent_BCFHW: torch.Tensor, noise_BCFHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """The noisy latent x_t = (1 - t) x0 + t noise (arXiv:2209.03003)."""
    return _mix(latent_BCFHW, noise_BCFHW, t_B.view(-1, 1, 1, 1, 1))


def _mix(latent_BCFHW: torch.Tensor, noise_BCFHW: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - t) * latent_BCFHW + t * noise_BCFHW


def weight(config: ObjectiveConfig, t_B: torch.Tensor) -> torch.Tensor:
    """weight_B: the factor on each sample's loss, a function of its noise level t.

    none: 1. sigma_sqrt: 1 / t^2 and cosmap: 2 / (pi (1 - 2t + 2t^2)) (arXiv:2403.03206, section 3.1 and appendix;
    huggingface/diffusers training_utils.py, compute_loss_weighting_for_sd3).
    bell: exp(-2 (t - 1/2)^2) minus its value at t = 0 and 1, scaled to mean 1 over uniform t
    (modelscope/DiffSynth-Studio, diffsynth/schedulers/flow_match.py).
    """
    if config.weighting == "sigma_sqrt":
        return t_B.clamp(min=1e-2) ** -2
    if config.weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * t_B + 2 * t_B**2))
    if config.weighting == "bell":
        end = math.exp(-0.5)
        mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - end
        return (torch.exp(-2 * (t_B - 0.5) ** 2) - end).clamp(min=0) / mean
    return torch.ones_like(t_B)


def denoising_loss(
    denoiser: Denoiser,
    latent_BCFHW: torch.Tensor,
    conditions: Mapping[str, torch.Tensor],
    t_B: torch.Tensor,
    noise_BCFHW: torch.Tensor,
    mask_B11HW: torch.Tensor | None = None,
    config: ObjectiveConfig = PLAIN,
) -> torch.Tensor:
    """loss_B: error of the predicted velocity against its target noise - x0, fp32, one unweighted value per sample.

    mse: the mean of the squares. huber: the same for errors e up to delta, 2 delta |e| - delta^2 above.
    With a mask it is the weighted mean, so that the size of the masked area does not change the scale of the loss.
    Frames that the model is given (`known_BF` of the conditions) are clean, at noise level 0, and not in the mean, as
    they are in sampling (modelscope/DiffSynth-Studio, diffsynth/diffusion/loss.py).

    Args:
        latent_BCFHW: normalised latents x0, fp32, on the denoiser's device.
        conditions: as `Denoiser.prepared` gives them, on the denoiser's device.
        t_B: noise levels in 0..1, fp32.
        noise_BCFHW: standard normal, fp32.
        mask_B11HW: weights in 0..1, fp32, not all 0; None weighs all alike.
    """
    x_BCFHW, open_B1F11 = noised(latent_BCFHW, noise_BCFHW, t_B, conditions)
    velocity_BCFHW = denoiser.velocity(x_BCFHW, t_B, conditions)
    target_BCFHW = noise_BCFHW - latent_BCFHW
    if config.loss == "huber":
        error_BCFHW = 2 * torch.nn.functional.huber_loss(
            velocity_BCFHW, target_BCFHW, reduction="none", delta=config.huber_delta)
    else:
        error_BCFHW = (velocity_BCFHW - target_BCFHW).square()
    return mean(error_BCFHW, shown(open_B1F11, mask_B11HW))


def noised(
    latent_BCFHW: torch.Tensor, noise_BCFHW: torch.Tensor, t_B: torch.Tensor, conditions: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(the noisy latent, open_B1F11: 0 for frames that the model is given clean, else 1; None where it is given none).
    """
    known_BF = conditions.get(KNOWN.name)
    if known_BF is None:
        return interpolate(latent_BCFHW, noise_BCFHW, t_B), None
    open_B1F11 = 1 - known_BF.view(len(t_B), 1, -1, 1, 1)
    return _mix(latent_BCFHW, noise_BCFHW, t_B.view(-1, 1, 1, 1, 1) * open_B1F11), open_B1F11


def shown(open_B1F11: torch.Tensor | None, mask_B11HW: torch.Tensor | None) -> torch.Tensor | None:
    """weight_B1FHW of the mean: what the mask shows of the frames that the model is not given; None weighs all alike.
    """
    if open_B1F11 is None:
        return mask_B11HW
    return open_B1F11 if mask_B11HW is None else open_B1F11 * mask_B11HW


def mean(error_BCFHW: torch.Tensor, weight_B1FHW: torch.Tensor | None) -> torch.Tensor:
    """The mean of each sample, (B,); with weights the weighted one."""
    if weight_B1FHW is None:
        return error_BCFHW.flatten(1).mean(1)
    return (error_BCFHW * weight_B1FHW).flatten(1).mean(1) / weight_B1FHW.flatten(1).mean(1)


def _between(levels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Linear through rising levels, the first at u = 0 and the last at u = 1, equally far apart in u."""
    place = u * (len(levels) - 1)
    before = place.long().clamp(max=len(levels) - 2)
    return torch.lerp(levels[before], levels[before + 1], place - before)


def _resolution_shift(num_tokens: int) -> float:
    """exp(mu), mu linear from 0.5 at 256 tokens to 1.15 at 4096 (black-forest-labs/flux, sampling.py).

    Constant above 4096 tokens: the line was fitted to images, and a clip's many tokens would extrapolate it too far.
    """
    return math.exp(0.5 + (1.15 - 0.5) * (min(num_tokens, 4096) - 256) / (4096 - 256))


@cache
def _inverse(config: ObjectiveConfig, num_tokens: int, t: float) -> float:
    """The u whose quantile is t, by bisection; 0 and 1 are mapped to themselves."""
    if t in (0.0, 1.0):
        return t
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_below = quantile(config, torch.tensor([middle], dtype=torch.float64), num_tokens).item() < t
        low, high = (middle, high) if is_below else (low, middle)
    return (low + high) / 2
