"""What makes a run another one, as its key."""

from __future__ import annotations

from ..base.errors import content_hash
from ..encoded.batches import batches_per_epoch
from ..encoded.cache import CachedDataset
from ..settings.training import TrainConfig
from .length import total_steps

VERSION = 2
"""Raise it when the same data, base and settings are trained differently."""


def keys(config: TrainConfig, dataset: CachedDataset, base: str) -> tuple[str, ...]:
    """The key of a run, then those under which earlier versions kept the same one.

    The data counts by contents and captions, the settings as `TrainConfig.identity` says, and prior captions where they
    are trained on. The length is part of it only
    where a step depends on it, as with a learning rate that falls: otherwise a longer run begins like a shorter one.
    Where the batch size is left to the node, the key does not depend on what it is on this card, nor on the number of
    steps that follows from it.

    Args:
        base: `id` of the denoiser.
    """
    settings = config.identity()
    length = _length(config, dataset) if config.optimizer.depends_on_length else ()
    priors = (dataset.prior_digest,) if config.objective.preserve else ()
    return (content_hash(VERSION, dataset.digest, base, settings, *length, *priors),
            content_hash(dataset.former_digest, base, settings))


def _length(config: TrainConfig, dataset: CachedDataset) -> tuple[int, ...]:
    if not config.batch_size:
        return config.epochs, config.max_steps
    return (total_steps(config, batches_per_epoch(dataset.samples, config.batch_size)),)
