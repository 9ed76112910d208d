"""Flow matching as Wan2.1 was trained: pure functions; training and evaluation call the same loss.

Rectified flow (Liu et al., arXiv:2209.03003) with logit-normal timesteps (Esser et al.,
arXiv:2403.03206, section 3.1), which the Wan report (arXiv:2503.20314) uses too.
"""

from __future__ import annotations

import torch

from .backend import Denoiser


def sample_timesteps(batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """t_B in (0, 1), fp32 on the CPU: sigmoid of a standard normal, without shift."""
    return torch.sigmoid(torch.randn(batch_size, generator=generator))


def sample_noise(latent_BCFHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise of the latent's shape, drawn on the CPU so that every device sees the same."""
    noise = torch.randn(latent_BCFHW.shape, generator=generator)
    return noise.to(latent_BCFHW.device)


def interpolate(latent_BCFHW: torch.Tensor, noise_BCFHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) x0 + t noise."""
    t_B1111 = t_B.view(-1, 1, 1, 1, 1)
    return (1 - t_B1111) * latent_BCFHW + t_B1111 * noise_BCFHW


def denoising_loss(
    denoiser: Denoiser,
    latent_BCFHW: torch.Tensor,
    text_BLD: torch.Tensor,
    t_B: torch.Tensor,
    noise_BCFHW: torch.Tensor,
    mask_B11HW: torch.Tensor | None = None,
) -> torch.Tensor:
    """loss_B: mean squared error of the predicted velocity against noise - x0, in fp32, one value a sample.

    With a mask it is the weighted mean, so that the size of what is masked does not change the loss's scale.

    Args:
        latent_BCFHW: normalised latents, fp32, on the denoiser's device.
        text_BLD: text embeddings, zeros after the end of each.
        t_B: noise levels in 0..1, fp32.
        noise_BCFHW: standard normal, fp32.
        mask_B11HW: weights in 0..1, fp32, not all 0; None weighs all alike.
    """
    x_BCFHW = interpolate(latent_BCFHW, noise_BCFHW, t_B)
    velocity_BCFHW = denoiser.velocity(x_BCFHW, t_B, text_BLD)
    target_BCFHW = noise_BCFHW - latent_BCFHW
    error_BCFHW = (velocity_BCFHW - target_BCFHW).square()
    if mask_B11HW is None:
        return error_BCFHW.flatten(1).mean(1)
    return (error_BCFHW * mask_B11HW).flatten(1).mean(1) / mask_B11HW.flatten(1).mean(1)
