"""The order of samples: epochs over samples x repeats, one bucket a batch, position in two integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .cache import CachedClip


class BucketSampler:
    """Endless batches of clips; the order is a function of (seed, epoch) alone.

    `epoch` and `cursor` (batches already taken in this epoch) are the whole state.
    """

    def __init__(self, clips: Sequence[CachedClip], batch_size: int, seed: int) -> None:
        self._clips = clips
        self._batch_size = batch_size
        self._seed = seed
        self.epoch = 0
        self.cursor = 0
        self._batches = self._shuffle()

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the same in every epoch."""
        return len(self._batches)

    def next(self) -> list[CachedClip]:
        """The next batch, all of one bucket; shorter than the batch size at the end of a bucket."""
        if self.cursor == len(self._batches):
            self.epoch += 1
            self.cursor = 0
            self._batches = self._shuffle()
        batch = self._batches[self.cursor]
        self.cursor += 1
        return [self._clips[index].on_visit(number) for index, number in batch]

    def _shuffle(self) -> list[list[tuple[int, int]]]:
        """Batches of (index of a clip, how often it was seen before)."""
        random = np.random.default_rng([self._seed, self.epoch])
        buckets = defaultdict(list)
        for index, clip in enumerate(self._clips):
            first = self.epoch * clip.repeats
            buckets[clip.bucket].extend((index, first + repeat) for repeat in range(clip.repeats))
        batches = []
        for bucket in sorted(buckets):
            order = [buckets[bucket][i] for i in random.permutation(len(buckets[bucket]))]
            batches += [order[i:i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]
