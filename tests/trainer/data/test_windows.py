"""Which frames are taken: arithmetic on times, without any file."""

from fractions import Fraction

import pytest

from wantune.trainer.data.windows import RANDOM_WINDOWS, Cut, Source, cut, longest, shown
from wantune.trainer.settings.data import EXTRACTION_MODES

MS = Fraction(1, 1000)


def source(seconds, last_seconds=Fraction(1, 30), rounding=MS) -> Source:
    return Source(64, 64, 10, Fraction(seconds), Fraction(last_seconds), rounding)


@pytest.mark.parametrize(("seconds", "expected"), [
    (2, 32), (Fraction(33, 16), 33), (Fraction(33, 16) + MS / 2, 33), (Fraction(33, 16) - MS / 2, 33),
    (Fraction(2064, 1000), 34), (Fraction(1, 30), 1), (0, 1), (Fraction(4004, 1000), 65),
])
def test_frames_at_16_fps_by_time(seconds, expected):
    assert source(seconds).frames_at(16) == expected


@pytest.mark.parametrize(("num_frames", "expected"), [
    (100, 81), (81, 81), (80, 81), (79, 33), (33, 33), (32, 33), (31, 17), (16, 17), (15, None), (1, None),
])
def test_the_longest_bucket_that_fits_is_taken_also_one_frame_short(num_frames, expected):
    assert longest(num_frames, (1, 17, 33, 81)) == expected


def test_a_picture_bucket_is_never_a_clip():
    assert longest(100, (1,)) is None
    assert all(cut(mode, 100, (1,), "x") == [] for mode in EXTRACTION_MODES)


@pytest.mark.parametrize(("mode", "num_frames", "expected"), [
    ("start", 100, [(33, (0,))]), ("middle", 100, [(33, (33,))]), ("middle", 32, [(33, (0,))]),
    ("uniform", 33, [(33, (0,))]), ("uniform", 34, [(33, (0,)), (33, (1,))]),
    ("uniform", 100, [(33, (0,)), (33, (22,)), (33, (45,)), (33, (67,))]),
    ("chunks", 100, [(33, (0,)), (33, (33,)), (33, (66,))]), ("chunks", 65, [(33, (0,)), (33, (33,))]),
    ("chunks", 50, [(33, (0,)), (17, (33,))]), ("random", 33, [(33, (0,))]), ("random", 32, [(33, (0,))]),
])
def test_windows_of_each_mode(mode, num_frames, expected):
    assert cut(mode, num_frames, (1, 17, 33), "digest") == [Cut(*each) for each in expected]


@pytest.mark.parametrize("mode", EXTRACTION_MODES)
@pytest.mark.parametrize("num_frames", [16, 17, 32, 33, 34, 49, 50, 66, 97, 1000])
def test_every_window_lies_in_the_clip(mode, num_frames):
    cuts = cut(mode, num_frames, (1, 17, 33), "digest")
    assert cuts
    for each in cuts:
        assert all(0 <= start and start + each.frames <= num_frames + 1 for start in each.starts)


@pytest.mark.parametrize("num_frames", [33, 66, 97, 1000])
def test_uniform_covers_every_frame_and_chunks_none_twice(num_frames):
    covered = {k for each in cut("uniform", num_frames, (33,), "x") for k in range(each.starts[0], each.starts[0] + 33)}
    assert covered == set(range(num_frames))
    taken = [k for each in cut("chunks", num_frames, (5, 33), "x")
             for k in range(each.starts[0], each.starts[0] + each.frames)]
    assert taken == list(range(len(taken))) and num_frames - len(taken) < 5


def test_random_windows_are_a_function_of_the_content():
    (one,), (same,), (other,) = (cut("random", 1000, (33,), digest) for digest in ("a", "a", "b"))
    assert one == same and one != other
    assert len(set(one.starts)) == RANDOM_WINDOWS


def frames_of(stamps, end, start, count, rounding=MS):
    timed = [(Fraction(stamp), number) for number, stamp in enumerate(stamps)]
    held = Fraction(end) - Fraction(stamps[-1])
    return list(shown(timed, source(end, held, rounding), start, count, 16))


def test_a_frame_is_shown_until_the_next_ones_time_has_come():
    assert frames_of([0, Fraction(1, 10), Fraction(1, 5)], Fraction(3, 10), 0, 5) == [0, 0, 1, 1, 2]


def test_a_timestamp_rounded_late_by_half_a_tick_still_counts():
    stamps = [Fraction(round(Fraction(k * 1000, 16)), 1000) for k in range(33)]
    assert frames_of(stamps, stamps[-1] + Fraction(1, 16), 0, 33) == list(range(33))


def test_the_last_frame_is_held_for_one_frame_and_no_longer():
    stamps = [Fraction(k, 16) for k in range(32)]
    assert frames_of(stamps, 2, 0, 33) == [*range(32), 31]
    assert len(frames_of(stamps, 2, 0, 40)) <= 34


def test_frames_after_the_window_are_not_asked_for():
    asked = []

    def endless():
        number = 0
        while True:
            asked.append(number)
            yield Fraction(number, 30), number
            number += 1

    assert list(shown(endless(), source(1000), 0, 5, 16)) == [0, 1, 3, 5, 7]
    assert len(asked) < 10
