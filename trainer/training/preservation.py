"""Only the concept: the model is held to what it was before training where the trigger word is not said.

DreamBooth (Ruiz et al., arXiv:2208.12242, section 3.3) trains on pictures that the model itself made of the class. Here
the model without the adapter is at hand, so its velocity itself is the target: on the sample's own noised latent, for a
prior caption (data/priors.py) in the caption's place, as in distillation (Hinton et al., arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..adapter.adapters import Adapter
from ..model.backend import Denoiser
from ..settings.training import ObjectiveConfig
from . import objective


def is_due(config: ObjectiveConfig, step: int) -> bool:
    """Whether an optimizer step, counted from 0, preserves: a function of the step, so that a resumed run goes on."""
    return config.preserve > 0 and step % config.preserve_every == 0


def factor(config: ObjectiveConfig) -> float:
    """On the loss in the steps that have it: one of every k has it, and counts k times, so that k chooses only what it
    costs (lazy regularization; Karras et al., arXiv:1912.04958, appendix B)."""
    return config.preserve * config.preserve_every


def preservation_loss(
    denoiser: Denoiser, adapter: Adapter, latent_BCFHW: torch.Tensor, conditions: Mapping[str, torch.Tensor],
    t_B: torch.Tensor, noise_BCFHW: torch.Tensor,
) -> torch.Tensor:
    """loss_B: the mean square of what the adapter changes of the velocity, fp32, one unweighted value per sample.

    It has no mask: what is not learned is to stay, too. Frames that the model is given are not in the mean.

    Args:
        latent_BCFHW, t_B, noise_BCFHW: as of `objective.denoising_loss`.
        conditions: as `Denoiser.prepared` gives them, of a prior caption.
    """
    x_BCFHW, open_B1F11 = objective.noised(latent_BCFHW, noise_BCFHW, t_B, conditions)
    with torch.no_grad(), adapter.switched_off():
        before_BCFHW = denoiser.velocity(x_BCFHW, t_B, conditions)
    change_BCFHW = denoiser.velocity(x_BCFHW, t_B, conditions) - before_BCFHW
    return objective.mean(change_BCFHW.square(), open_B1F11)
