"""The order of samples: an epoch visits each one `repeats` times, a batch has one bucket, the position is two integers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from ..base.threads import DaemonPool
from ..data.buckets import Bucket
from ..model.conditions import CAPTION, ConditionKind
from .cache import CachedSample, Visit
from .store import read_tensor

AHEAD = 2
"""Batches that are prepared ahead."""

Position = tuple[int, int]
"""(epoch, batches already taken in it)"""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The order of one epoch. Row i of the first four arrays is one visit to a sample; a batch is a range of rows."""

    indices: np.ndarray
    """Index of the sample."""
    visits: np.ndarray
    """How often the sample was visited before, in all epochs."""
    is_dropped: np.ndarray
    """Whether the caption is dropped in this visit."""
    is_condition_dropped: np.ndarray
    """Whether no frame is given in this visit."""
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
        kinds: the conditions of the model family; their `collate` makes one tensor of those of several samples. What
            the samples have beside them is not read.

    Raises:
        UserError: a cache file has gone or is damaged.
    """
    masks_HW = [read_tensor(visit.mask_path) if visit.mask_path else None for visit in visits]
    latent_BCFHW = torch.stack([read_tensor(visit.latent_path) for visit in visits])
    mask_B11HW = None
    if any(mask_HW is not None for mask_HW in masks_HW):
        everything = torch.ones(latent_BCFHW.shape[-2:])
        mask_B11HW = torch.stack([everything if mask_HW is None else mask_HW for mask_HW in masks_HW])[:, None, None]
    return Batch(
        names=tuple(visit.name for visit in visits),
        latent_BCFHW=latent_BCFHW,
        conditions=_conditions(visits, kinds),
        mask_B11HW=mask_B11HW,
    )


def read_priors(visits: Sequence[Visit], kinds: Sequence[ConditionKind]) -> dict[str, torch.Tensor]:
    """Of the visits' prior captions: what `Batch.conditions` has of the captions.

    Raises:
        UserError: as `read_batch`, or the dataset was cached without prior captions.
    """
    return _conditions([visit.prior() for visit in visits], [kind for kind in kinds if kind.source == CAPTION])


def _conditions(visits: Sequence[Visit], kinds: Sequence[ConditionKind]) -> dict[str, torch.Tensor]:
    return {kind.name: kind.collate([_condition(kind, visit) for visit in visits])
            for kind in kinds if not kind.is_optional or kind.name in visits[0].condition_paths}


def _condition(kind: ConditionKind, visit: Visit) -> torch.Tensor:
    tensor = read_tensor(visit.condition_paths[kind.name])
    return kind.without(tensor) if visit.is_condition_dropped and kind.without else tensor


def batches_per_epoch(samples: Sequence[CachedSample], batch_size: int) -> int:
    """Number of batches in an epoch; the last of each bucket may be shorter."""
    return sum(math.ceil(count / batch_size) for count in visits_by_bucket(samples).values())


def visits_by_bucket(samples: Sequence[CachedSample]) -> Counter[Bucket]:
    """How often an epoch visits samples of each bucket."""
    visits: Counter[Bucket] = Counter()
    for sample in samples:
        visits[sample.bucket] += sample.repeats
    return visits


class BucketSampler:
    """Endless batches of samples; the order is a function of (seed, epoch) alone.

    `epoch` and `cursor` (batches already taken in this epoch) are the whole state.
    """

    def __init__(self, samples: Sequence[CachedSample], batch_size: int, seed: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._known: tuple[int, _Epoch] | None = None
        self.epoch = 0
        self.cursor = 0
        self.steps_per_epoch = batches_per_epoch(samples, batch_size)
        """Batches per epoch, before gradient accumulation; the same in every epoch."""

    @property
    def position(self) -> Position:
        """Where the next batch lies."""
        return self.epoch, self.cursor

    def next(self) -> list[Visit]:
        """The next batch, all of one bucket; shorter than the batch size at the end of a bucket."""
        if self.cursor == self.steps_per_epoch:
            self.epoch, self.cursor = self.epoch + 1, 0
        self.cursor += 1
        return self._batch(self.epoch, self.cursor - 1)

    def _batch(self, epoch: int, cursor: int) -> list[Visit]:
        order = self._epoch(epoch)
        rows = slice(*order.batches[cursor])
        drops = zip(order.is_dropped[rows].tolist(), order.is_condition_dropped[rows].tolist(), strict=True)
        return [self._samples[index].visit(int(visit), *dropped) for index, visit, dropped
                in zip(order.indices[rows], order.visits[rows], drops, strict=True)]

    def _epoch(self, epoch: int) -> _Epoch:
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._shuffle(epoch)
        return self._known[1]

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
        # random streams of their own, so that the order is the same with and without dropout
        dropped = [np.random.default_rng([self._seed, epoch, stream]).random(len(rows)) < np.array(shares)[rows]
                   for stream, shares in ((1, [sample.caption_dropout for sample in self._samples]),
                                          (2, [sample.condition_dropout for sample in self._samples]))]
        return _Epoch(rows, np.concatenate(visits), *dropped, random.permutation(np.concatenate(batches)))


class LookAhead(Generic[Item]):
    """What an iterator gives, made by one thread, one after the other, while what came before is used."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._thread = DaemonPool(1, "wantune-batches")
        self._ahead: deque[Future] = deque()

    def next(self) -> Item:
        """The iterator's next; what the iterator raised is raised at its own place."""
        while len(self._ahead) <= AHEAD:
            self._ahead.append(self._thread.submit(next, self._items))
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Make no more."""
        self._thread.shutdown(cancel_futures=True)
