"""Two clips side by side, as frames and in an mp4 that is read back with PyAV."""

import tracemalloc

import numpy as np
import pytest
import torch

from wantune.tests.support.videos import moving_clip, read_back
from wantune.trainer.media.side_by_side import side_by_side
from wantune.trainer.media.videos import write_mp4

LABELS = ("base", "with LoRA")


def picture_part(video: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right picture, without the strip of labels above them."""
    below = video[:, video.shape[1] - height :]
    half = video.shape[2] // 2
    return below[:, :, :half] / 255, below[:, :, half:] / 255


def write(path, base, tuned, fps=16.0, labels=LABELS) -> np.ndarray:
    write_mp4(path, side_by_side(base, tuned, labels), fps)
    return read_back(path)[0]


def test_left_half_is_base_and_right_half_is_tuned(tmp_path):
    base, tuned = moving_clip(9, 160, 288), moving_clip(9, 160, 288, phase=2.0)
    video = write(tmp_path / "a.mp4", base, tuned)
    left, right = picture_part(video, 160)
    assert video.shape[0] == 9 and video.shape[2] == 2 * 288
    assert abs(left - base).mean() < 0.01 and abs(right - tuned).mean() < 0.01
    assert abs(left - tuned).mean() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_survive(tmp_path):
    """Each corner of the colour cube: a wrong matrix or range would move them."""
    for colour in np.ndindex(2, 2, 2):
        clip = np.broadcast_to(np.float32(colour), (2, 64, 64, 3))
        halves = picture_part(write(tmp_path / "a.mp4", clip, clip), 64 * 4)
        # Away from the strip, whose edge the codec softens by a few pixels.
        assert all(abs(half[:, 16:] - np.float32(colour)).max() < 0.02 for half in halves)


@pytest.mark.parametrize("width", [64, 300, 832])
def test_both_labels_are_written(width):
    clip = moving_clip(1, 96, width)
    frame = next(iter(side_by_side(clip, clip, LABELS)))
    factor = -(-256 // width)
    strip = frame[: frame.shape[0] - 96 * factor]
    left, right = np.split(strip, 2, axis=1)
    assert left.std() > 5 and right.std() > 5 and not np.array_equal(left, right)
    assert strip.shape[0] >= 32
    blank = next(iter(side_by_side(clip, clip, ("", " \n "))))[: strip.shape[0]]
    assert blank.std() == 0


def test_a_label_too_long_is_shortened_and_keeps_the_frame_size():
    clip = moving_clip(1, 64, 64)
    long = next(iter(side_by_side(clip, clip, ("word " * 200, "x" * 999))))
    short = next(iter(side_by_side(clip, clip, LABELS)))
    assert long.shape == short.shape
    assert long[:, :4].std(axis=(0, 1)).shape == (3,) and long[:16, :2].std() == 0


def test_tiny_pictures_are_enlarged_pixel_by_pixel():
    base, tuned = moving_clip(1, 64, 64), moving_clip(1, 64, 64, phase=1.0)
    frame = next(iter(side_by_side(base, tuned, LABELS)))
    expected = np.rint(base[0] * 255).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(frame[-256:, :256], expected)


def test_odd_sizes_get_a_black_border_and_lose_nothing(tmp_path):
    base = moving_clip(2, 301, 257)
    frame = next(iter(side_by_side(base, base, LABELS)))
    assert frame.shape[0] % 2 == 0 and frame.shape[1] == 2 * 258
    picture = np.rint(base[0] * 255).astype(np.uint8)
    assert np.array_equal(frame[-302:-1, :257], picture) and np.array_equal(frame[-302:-1, 258:-1], picture)
    assert not frame[-1].any() and not frame[-302:, -1].any()
    assert len(write(tmp_path / "a.mp4", base, base)) == 2


def test_a_smaller_clip_is_fitted_uncropped_on_black():
    base, tuned = np.ones((1, 200, 400, 3)), np.ones((1, 100, 100, 3)) * 0.5
    frame = next(iter(side_by_side(base, tuned, LABELS)))
    right = frame[-200:, 400:]
    assert (frame[-200:, :400] == 255).all()
    assert (right[:, 100:300] == 128).all() and not right[:, :100].any() and not right[:, 300:].any()


def test_a_shorter_clip_holds_its_last_frame_and_its_label_says_how_long_it_is():
    base, tuned = moving_clip(5, 64, 256), moving_clip(2, 64, 256, phase=1.0)
    frames = list(side_by_side(base, tuned, LABELS))
    assert len(frames) == 5
    rights = [frame[-64:, 256:] for frame in frames]
    assert np.array_equal(rights[1], rights[4]) and not np.array_equal(rights[0], rights[1])
    said = next(iter(side_by_side(base, tuned, ("base (5 frames)", "with LoRA (2 frames)"))))
    equal_length = next(iter(side_by_side(base, base, ("base (5 frames)", "with LoRA (2 frames)"))))
    assert np.array_equal(frames[0][:-64], equal_length[:-64]) and not np.array_equal(said, frames[0])


@pytest.mark.parametrize(("fps", "shown"), [(16.0, 16), (23.976, 24), (1.0, 1)])
def test_single_pictures_are_shown_for_a_second(tmp_path, fps, shown):
    base, tuned = moving_clip(1, 64, 256), moving_clip(1, 64, 256, phase=1.0)
    video = write(tmp_path / "a.mp4", base, tuned, fps)
    assert len(video) == shown
    assert abs(picture_part(video, 64)[1][-1] - tuned[0]).mean() < 0.02


def test_alpha_is_dropped_and_values_outside_0_to_1_are_clipped():
    base = moving_clip(1, 64, 256)
    with_alpha = np.concatenate([base, np.zeros_like(base[..., :1])], axis=-1)
    assert np.array_equal(*[next(side_by_side(clip, base, LABELS)) for clip in (base, with_alpha)])
    wild = next(side_by_side(base * 9 - 4, base, LABELS))[-64:, :256]
    assert np.array_equal(wild, np.rint(np.clip(base[0] * 9 - 4, 0, 1) * 255).astype(np.uint8))


def test_tensors_and_bytes_give_the_same_frames_as_floats():
    base = np.round(moving_clip(1, 64, 256) * 255) / 255
    expected = next(side_by_side(base, base, LABELS))
    with torch.inference_mode():
        tensor = torch.from_numpy(base)
        assert np.array_equal(expected, next(side_by_side(tensor, tensor, LABELS)))
    pixels = np.rint(base * 255).astype(np.uint8)
    assert np.array_equal(expected, next(side_by_side(pixels, pixels, LABELS)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "'tuned' must be pictures .* but is a NoneType"),
        (np.zeros((2, 8, 8, 1)), r"\(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3)), r"\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3)), r"\(0, 8, 8, 3\)"),
        ({"samples": 1}, "a dict"),
    ],
)
def test_what_is_not_an_image_is_refused_before_any_work(wrong, said):
    with pytest.raises(ValueError, match=said):
        side_by_side(np.zeros((2, 8, 8, 3)), wrong, LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_clip_and_frame_and_leaves_no_file(tmp_path, value):
    base, tuned = moving_clip(3, 64, 64), moving_clip(3, 64, 64)
    tuned[1, 5, 5, 0] = value
    with pytest.raises(ValueError, match="frame 2 of 'tuned'"):
        write_mp4(tmp_path / "a.mp4", side_by_side(base, tuned, LABELS), 16)
    assert list(tmp_path.iterdir()) == []


def test_frames_are_made_one_at_a_time():
    """200 frames of 256x256 side by side are 82 MB; one is 0.4 MB."""
    picture = moving_clip(1, 256, 256)
    clip = np.broadcast_to(picture, (200, 256, 256, 3))
    tracemalloc.start()
    assert sum(1 for _ in side_by_side(clip, clip, LABELS)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
