"""Decoded ahead, encoded in turn, written behind; what cannot be read is left out, what is done is kept."""

import threading
import time

import pytest
import torch

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded import fill
from wantune.trainer.encoded.fill import READERS, Job
from wantune.trainer.encoded.store import Store, read_tensor


def jobs_of(cache: Store, count: int, read=None, encode=None) -> list[Job]:
    return [Job("latents", str(number), cache.path("latents", str(number)), 1,
                lambda number=number: read(number) if read else number,
                encode or (lambda content: torch.full((3,), float(content))), cache.folder / str(number))
            for number in range(count)]


@pytest.fixture
def cache(tmp_path):
    return Store(tmp_path)


def test_every_item_is_encoded_in_turn_in_the_callers_thread(cache):
    threads, order = set(), []

    def encode(content):
        threads.add(threading.current_thread())
        order.append(content)
        return torch.full((3,), float(content))

    events, faults = tools.drained(fill.run(jobs_of(cache, 7, encode=encode), cache))
    assert order == list(range(7)) and threads == {threading.current_thread()} and not faults
    assert [event.done for event in events] == [1, 2, 3, 4, 5, 6, 7] and events[-1].total == 7
    for number in range(7):
        assert (read_tensor(cache.path("latents", str(number))) == number).all()


def test_no_more_is_read_ahead_than_a_few_items(cache):
    was_read, most = [], 0

    def encode(content):
        nonlocal most
        time.sleep(0.005)
        most = max(most, len(was_read) - content)
        return torch.zeros(3)

    tools.drained(fill.run(jobs_of(cache, 30, read=lambda n: was_read.append(n) or n, encode=encode), cache))
    assert 1 < most <= READERS + 2


def test_of_large_items_one_alone_is_read_ahead(cache, monkeypatch):
    monkeypatch.setattr(fill, "MAX_AHEAD", 0.5)
    was_read, most = [], 0

    def encode(content):
        nonlocal most
        time.sleep(0.005)
        most = max(most, len(was_read) - content)
        return torch.zeros(3)

    tools.drained(fill.run(jobs_of(cache, 30, read=lambda n: was_read.append(n) or n, encode=encode), cache))
    assert 1 < most <= 2


def test_reading_goes_on_while_the_encoder_works(cache):
    """The next item is read before this one is encoded to its end."""
    next_was_read = threading.Event()

    def read(number):
        if number == 1:
            next_was_read.set()
        return number

    def encode(content):
        assert next_was_read.wait(10)
        return torch.zeros(3)

    tools.drained(fill.run(jobs_of(cache, 3, read, encode), cache))


@pytest.mark.parametrize("bad", [(0,), (3,), (6,), (0, 1, 2, 3, 4, 5, 6)])
def test_what_cannot_be_read_is_left_out_and_named(cache, bad):
    def read(number):
        if number in bad:
            raise UserError(f"{number} is damaged; export it again.")
        return number

    events, faults = tools.drained(fill.run(jobs_of(cache, 7, read), cache))
    assert [event.done for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert {fault.name: fault.reason for fault in faults.values()} == {
        str(number): f"{number} is damaged; export it again." for number in bad}
    assert [number for number in range(7) if not cache.use(cache.path("latents", str(number)))] == list(bad)


@pytest.mark.parametrize("after", range(1, 6))
def test_stopping_keeps_what_is_encoded(cache, after):
    encoded = []
    progress = fill.run(jobs_of(cache, 6, encode=lambda n: encoded.append(n) or torch.zeros(3)), cache)
    for _ in range(after):
        next(progress)
    progress.close()
    assert encoded == list(range(after))
    assert all(cache.use(cache.path("latents", str(number))) for number in encoded)
    tools.drained(fill.run(jobs_of(cache, 6, encode=lambda n: encoded.append(n) or torch.zeros(3)), cache))
    assert encoded == list(range(6))


def test_an_encoder_that_fails_ends_it_and_what_is_encoded_is_kept(cache):
    def encode(content):
        if content == 3:
            raise RuntimeError("out of memory")
        return torch.zeros(3)

    with pytest.raises(RuntimeError, match="out of memory"):
        tools.drained(fill.run(jobs_of(cache, 6, encode=encode), cache))
    assert [number for number in range(6) if cache.use(cache.path("latents", str(number)))] == [0, 1, 2]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_full_disk_stops_it_with_a_sentence(cache, monkeypatch, number):
    write, count = Store.write, [0]

    def full(self, path, tensor):
        count[0] += 1
        if count[0] == number + 1:
            raise UserError("The cache cannot be written; free some space.")
        write(self, path, tensor)

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(UserError, match="free some space"):
        tools.drained(fill.run(jobs_of(cache, 5), cache))


def test_the_time_left_goes_by_the_work_that_is_left(cache):
    def encode(content):
        time.sleep(0.02)
        return torch.zeros(3)

    small = jobs_of(cache, 4, encode=encode)
    events, _ = tools.drained(fill.run(small, cache))
    left = [event.seconds_left for event in events]
    assert left[-1] == 0 and all(seconds >= 0.02 * rest for seconds, rest in zip(left, (3, 2, 1, 0), strict=True))
    again, _ = tools.drained(fill.run(small, cache))
    assert [(event.done, event.seconds_left) for event in again] == [(4, None)]
