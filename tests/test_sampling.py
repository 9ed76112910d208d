"""The order of samples: complete epochs, one bucket a batch, a function of seed and epoch."""

from collections import Counter
from pathlib import Path

from wantune.trainer.buckets import Bucket
from wantune.trainer.cache import CachedClip
from wantune.trainer.sampling import BucketSampler

WIDE, TALL = Bucket(1, 256, 512), Bucket(1, 512, 256)


def clip(name: str, bucket: Bucket, repeats: int) -> CachedClip:
    return CachedClip(name, bucket, repeats, (Path(name),), (Path(name),))


CLIPS = [clip("a", WIDE, 3), clip("b", WIDE, 2), clip("c", TALL, 4)]


def epochs(sampler: BucketSampler, count: int) -> list[list[list[str]]]:
    return [[[c.name for c in sampler.next()] for _ in range(sampler.steps_per_epoch)] for _ in range(count)]


def test_every_sample_is_seen_as_often_as_it_repeats_in_every_epoch():
    for batches in epochs(BucketSampler(CLIPS, 2, seed=0), 5):
        assert Counter(name for batch in batches for name in batch) == {"a": 3, "b": 2, "c": 4}


def test_a_batch_holds_one_bucket_and_a_short_batch_is_not_dropped():
    for batches in epochs(BucketSampler(CLIPS, 2, seed=0), 3):
        assert all("c" not in batch or set(batch) == {"c"} for batch in batches)
        assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2, 2]


def test_a_batch_larger_than_the_data_takes_it_all():
    assert BucketSampler(CLIPS, 100, seed=0).steps_per_epoch == 2


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epochs(BucketSampler(CLIPS, 2, seed=1), 3) == epochs(BucketSampler(CLIPS, 2, seed=1), 3)
    first, second = epochs(BucketSampler(CLIPS, 1, seed=1), 2)
    assert first != second
    assert epochs(BucketSampler(CLIPS, 1, seed=2), 1)[0] != first


def test_the_position_is_epoch_and_cursor():
    sampler = BucketSampler(CLIPS, 2, seed=0)
    for _ in range(7):
        sampler.next()
    assert (sampler.epoch, sampler.cursor) == (1, 2)
