"""What makes a run another one, as its key."""

from __future__ import annotations

from ..base.errors import content_hash
from ..encoded.cache import CachedDataset
from ..settings.training import TrainConfig

VERSION = 2
"""Raise it when the same data, base and settings are trained differently."""


def keys(config: TrainConfig, dataset: CachedDataset, base: str, total_steps: int) -> tuple[str, ...]:
    """The key of a run, then those under which earlier versions kept the same one.

    The data counts by contents and captions, the settings as `TrainConfig.identity` says. The length is part of it only
    where a step depends on it, as with a learning rate that falls: otherwise a longer run begins like a shorter one.

    Args:
        base: `id` of the denoiser.
    """
    settings = config.identity()
    length = [total_steps] if config.optimizer.depends_on_length else []
    return (content_hash(VERSION, dataset.digest, base, settings, *length),
            content_hash(dataset.former_digest, base, settings))
