"""The order of samples: an epoch visits each one `repeats` times, a batch has one bucket, the position is two integers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from ..base.threads import DaemonPool
from ..model.conditions import ConditionKind
from .cache import CachedSample, Visit
from .store import read_tensor

AHEAD = 2
"""Batches that are read ahead."""

Position = tuple[int, int]
"""(epoch, batches already taken in it)"""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The order of one epoch. Row i of the first three arrays is one visit to a sample; a batch is a range of rows."""

    indices: np.ndarray
    """Index of the sample."""
    visits: np.ndarray
    """How often the sample was visited before, in all epochs."""
    is_dropped: np.ndarray
    """Whether the caption is dropped in this visit."""
    batches: np.ndarray
    """(number of batches, 2): first row and last row + 1 of each batch, in the order in which they are taken."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one bucket."""

    names: tuple[str, ...]
    latent_BCFHW: torch.Tensor
    """fp32."""
    conditions: dict[str, torch.Tensor]
    """(B, ...) each, fp32, by kind; in text_BLD shorter texts are padded with zero rows."""
    mask_B11HW: torch.Tensor | None
    """fp32 in 0..1; None where no sample has a mask."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        mask_B11HW = self.mask_B11HW.to(device) if self.mask_B11HW is not None else None
        conditions = {name: tensor.to(device) for name, tensor in self.conditions.items()}
        return Batch(self.names, self.latent_BCFHW.to(device), conditions, mask_B11HW)


def read_batch(visits: Sequence[Visit], kinds: Sequence[ConditionKind]) -> Batch:
    """Read the files of samples of one bucket.

    Args:
        kinds: the conditions of the model family; their `collate` makes one tensor of those of several samples.

    Raises:
        UserError: a cache file has gone or is damaged.
    """
    masks_HW = [read_tensor(visit.mask_path) if visit.mask_path else None for visit in visits]
    latent_BCFHW = torch.stack([read_tensor(visit.latent_path) for visit in visits])
    mask_B11HW = None
    if any(mask_HW is not None for mask_HW in masks_HW):
        everything = torch.ones(latent_BCFHW.shape[-2:])
        mask_B11HW = torch.stack([everything if mask_HW is None else mask_HW for mask_HW in masks_HW])[:, None, None]
    conditions = {kind.name: kind.collate([read_tensor(visit.condition_paths[kind.name]) for visit in visits])
                  for kind in kinds}
    return Batch(
        names=tuple(visit.name for visit in visits),
        latent_BCFHW=latent_BCFHW,
        conditions=conditions,
        mask_B11HW=mask_B11HW,
    )


def batches_per_epoch(samples: Sequence[CachedSample], batch_size: int) -> int:
    """Number of batches in an epoch; the last of each bucket may be shorter."""
    visits: Counter = Counter()
    for sample in samples:
        visits[sample.bucket] += sample.repeats
    return sum(math.ceil(count / batch_size) for count in visits.values())


class BucketSampler:
    """Endless batches of samples; the order is a function of (seed, epoch) alone.

    `epoch` and `cursor` (batches already taken in this epoch) are the whole state.
    """

    def __init__(self, samples: Sequence[CachedSample], batch_size: int, seed: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}
        self.epoch = 0
        self.cursor = 0
        self.steps_per_epoch = batches_per_epoch(samples, batch_size)
        """Batches per epoch, before gradient accumulation; the same in every epoch."""

    def next(self) -> list[Visit]:
        """The next batch, all of one bucket; shorter than the batch size at the end of a bucket."""
        (self.epoch, cursor), visits = next(self.upcoming())
        self.cursor = cursor + 1
        return visits

    def upcoming(self) -> Iterator[tuple[Position, list[Visit]]]:
        """Endless iterator over what `next` will return, with positions; the sampler's own position stays."""
        epoch, cursor = self.epoch, self.cursor
        while True:
            if cursor == self.steps_per_epoch:
                epoch, cursor = epoch + 1, 0
            yield (epoch, cursor), self._batch(epoch, cursor)
            cursor += 1

    def _batch(self, epoch: int, cursor: int) -> list[Visit]:
        order = self._epoch(epoch)
        rows = slice(*order.batches[cursor])
        return [self._samples[index].visit(int(visit), bool(is_dropped)) for index, visit, is_dropped
                in zip(order.indices[rows], order.visits[rows], order.is_dropped[rows], strict=True)]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs = {known: order for known, order in self._epochs.items() if abs(known - epoch) <= AHEAD}
            self._epochs[epoch] = self._shuffle(epoch)
        return self._epochs[epoch]

    def _shuffle(self, epoch: int) -> _Epoch:
        random = np.random.default_rng([self._seed, epoch])
        buckets = defaultdict(list)
        for index, sample in enumerate(self._samples):
            buckets[sample.bucket].append(index)
        indices, visits, batches, first = [], [], [], 0
        for bucket in sorted(buckets):
            repeats = np.array([self._samples[index].repeats for index in buckets[bucket]])
            ends = repeats.cumsum()
            seen = np.arange(ends[-1]) - np.repeat(ends - repeats, repeats) + epoch * np.repeat(repeats, repeats)
            order = random.permutation(ends[-1])
            indices.append(np.repeat(buckets[bucket], repeats)[order])
            visits.append(seen[order])
            starts = np.arange(0, ends[-1], self._batch_size)
            batches.append(first + np.stack([starts, np.minimum(starts + self._batch_size, ends[-1])], 1))
            first += ends[-1]
        rows = np.concatenate(indices)
        dropouts = np.array([sample.caption_dropout for sample in self._samples])[rows]
        # a random stream of its own, so that the order is the same with and without caption dropout
        is_dropped = np.random.default_rng([self._seed, epoch, 1]).random(len(rows)) < dropouts
        return _Epoch(rows, np.concatenate(visits), is_dropped, random.permutation(np.concatenate(batches)))


class LookAhead:
    """Batches of a sampler, read by a thread while the step before them is computed."""

    def __init__(self, sampler: BucketSampler, kinds: Sequence[ConditionKind]) -> None:
        self._sampler = sampler
        self._kinds = kinds
        self._reader = DaemonPool(1, "wantune-batches")
        self._reading: dict[Position, Future] = {}

    def next(self) -> Batch:
        """The next batch; the sampler's position moves by one, whatever is read ahead."""
        upcoming = self._sampler.upcoming()
        wanted = dict(next(upcoming) for _ in range(AHEAD + 1))
        # after a change of the sampler's position (a resumed run) other batches that were read ahead are useless
        self._reading = {position: self._reading.get(position) or self._reader.submit(read_batch, visits, self._kinds)
                         for position, visits in wanted.items()}
        position = next(iter(wanted))
        self._sampler.next()
        return self._reading.pop(position).result()

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(cancel_futures=True)
