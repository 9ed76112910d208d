"""The order of samples: complete epochs, one bucket a batch, a function of seed and epoch."""

import itertools
import threading
from collections import Counter
from pathlib import Path

import pytest

from wantune.trainer.base.errors import UserError
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded import batches
from wantune.trainer.encoded.batches import BucketSampler, LookAhead
from wantune.trainer.encoded.cache import CachedSample

WIDE, TALL = Bucket(1, 256, 512), Bucket(1, 512, 256)


def clip(name: str, bucket: Bucket, repeats: int) -> CachedSample:
    return CachedSample(name, bucket, repeats, (Path(name),), ({"text": Path(name)},))


CLIPS = [clip("a", WIDE, 3), clip("b", WIDE, 2), clip("c", TALL, 4)]


def epochs(sampler: BucketSampler, count: int) -> list[list[list[str]]]:
    return [[[c.name for c in sampler.next()] for _ in range(sampler.steps_per_epoch)] for _ in range(count)]


def test_every_sample_is_seen_as_often_as_it_repeats_in_every_epoch():
    for epoch in epochs(BucketSampler(CLIPS, 2, seed=0), 5):
        assert Counter(name for batch in epoch for name in batch) == {"a": 3, "b": 2, "c": 4}


def test_a_batch_holds_one_bucket_and_a_short_batch_is_not_dropped():
    for epoch in epochs(BucketSampler(CLIPS, 2, seed=0), 3):
        assert all("c" not in batch or set(batch) == {"c"} for batch in epoch)
        assert sorted(len(batch) for batch in epoch) == [1, 2, 2, 2, 2]


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


def many(count: int, **settings) -> list[CachedSample]:
    captions = ({"text": Path("a")}, {"text": Path("b")})
    return [CachedSample(str(i), WIDE if i % 3 else TALL, 1 + i % 4, (Path(f"{i}"),), captions, **settings)
            for i in range(count)]


def test_a_position_gives_the_same_batches_whatever_came_before():
    sampler = BucketSampler(many(20), 3, seed=5)
    run = [sampler.next() for _ in range(5 * sampler.steps_per_epoch)]
    for number in (0, 7, 2 * sampler.steps_per_epoch, 4 * sampler.steps_per_epoch + 3):
        other = BucketSampler(many(20), 3, seed=5)
        other.epoch, other.cursor = divmod(number, sampler.steps_per_epoch)
        assert [other.next() for _ in range(len(run) - number)] == run[number:]


def test_captions_are_dropped_as_often_as_asked_and_the_order_stays():
    kept = BucketSampler(many(200), 1, seed=3)
    dropped = BucketSampler(many(200, empty_caption={"text": Path("empty")}, caption_dropout=0.2), 1, seed=3)
    count = 4 * kept.steps_per_epoch
    pairs = [(kept.next()[0], dropped.next()[0]) for _ in range(count)]
    assert all(a.latent_path == b.latent_path for a, b in pairs)
    empty = sum(b.condition_paths["text"] == Path("empty") for _, b in pairs)
    assert all(a == b for a, b in pairs if b.condition_paths["text"] != Path("empty"))
    assert abs(empty / count - 0.2) < 4 * (0.2 * 0.8 / count) ** 0.5
    always = BucketSampler(many(9, empty_caption={"text": Path("empty")}, caption_dropout=1.0), 1, seed=3)
    assert {always.next()[0].condition_paths["text"] for _ in range(30)} == {Path("empty")}


def counted(fails_at: int = -1):
    """Numbers from 0 on, and the threads in which they were made."""
    threads: list[str] = []

    def numbers():
        for number in itertools.count():
            threads.append(threading.current_thread().name)
            if number == fails_at:
                raise UserError("gone")
            yield number

    return numbers(), threads


def test_what_comes_next_is_made_ahead_in_a_thread_and_in_order():
    numbers, threads = counted()
    look_ahead = LookAhead(numbers)
    assert not threads, "nothing is made before the first is asked for"
    assert [look_ahead.next() for _ in range(20)] == list(range(20))
    look_ahead.close()
    assert len(set(threads)) == 1 and threading.current_thread().name not in threads
    assert 20 <= len(threads) <= 20 + batches.AHEAD


def test_what_cannot_be_read_is_an_error_at_its_own_place():
    numbers, _ = counted(fails_at=7)
    look_ahead = LookAhead(numbers)
    assert [look_ahead.next() for _ in range(7)] == list(range(7))
    with pytest.raises(UserError, match="gone"):
        look_ahead.next()
    look_ahead.close()
