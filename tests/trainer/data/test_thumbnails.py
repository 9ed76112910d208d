"""Thumbnails show what training sees, and the folder that keeps them stays small."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wantune.tests.support import clips
from wantune.tests.support.folders import draw, noise, sample_of, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import pictures
from wantune.trainer.data.thumbnails import MAX_FRAMES, MAX_SIDE, Shelf, key_of, make


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "WEBP"
    return image


def smooth(path, size):
    """A picture whose thumbnail survives webp: a ramp from left to right and one from top to bottom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8)).save(path)


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (400, 64), (333, 251)])
@pytest.mark.parametrize("resolution", [64, 512])
def test_a_thumbnail_is_the_crop_that_is_trained_on(tmp_path, size, resolution):
    smooth(tmp_path / "a.png", size)
    clip = sample_of(scan(tmp_path, resolution=resolution, upscale=True), "a.png")
    shown = opened(make(clip, 0, False))
    assert max(shown.size) <= MAX_SIDE
    trained = pictures.fit(pictures.open_picture(clip.path.read_bytes(), clip.name), clip.bucket.width,
                           clip.bucket.height)
    expected = np.asarray(Image.fromarray(trained).resize(shown.size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - expected).mean() < 4


def test_a_still_of_a_clip_is_the_first_frame_of_its_window_and_the_moving_one_shows_all(tmp_path):
    clips.at_rate(tmp_path / "a.mp4", 16, 60)
    clip = sample_of(scan(tmp_path, frame_buckets=(1, 33), extraction="middle"), "a.mp4")
    (start,) = clip.starts
    assert start and clips.number_of(np.asarray(opened(make(clip, start, False)).convert("RGB"))) == start
    moving = opened(make(clip, start, True))
    assert moving.n_frames == 33
    numbers = []
    for number in range(33):
        moving.seek(number)
        numbers.append(clips.number_of(np.asarray(moving.convert("RGB"))))
    assert numbers == list(range(start, start + 33))


def test_of_a_long_window_some_frames_are_left_out_and_its_time_is_kept(tmp_path):
    clips.at_rate(tmp_path / "a.mp4", 16, 90)
    moving = opened(make(sample_of(scan(tmp_path, frame_buckets=(1, 81)), "a.mp4"), 0, True))
    assert moving.n_frames == 27 <= MAX_FRAMES
    moving.load()
    assert moving.info["duration"] * moving.n_frames == pytest.approx(81 / 16 * 1000, rel=0.02)


def test_what_a_mask_leaves_out_is_dark(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "masks" / "a.png")
    shown = np.asarray(opened(make(sample_of(scan(tmp_path), "a.png"), 0, False)).convert("L")).astype(int)
    assert shown[:, 4:28].min() > 230 and 50 < shown[:, 36:60].mean() < 110


def test_damage_and_change_are_sentences(tmp_path):
    draw(tmp_path / "a.png")
    clip = sample_of(scan(tmp_path), "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    with pytest.raises(UserError, match="a.png is damaged|a.png changed"):
        make(clip, 0, False)
    noise(7).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png changed"):
        make(clip, 0, False)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png is gone"):
        make(clip, 0, False)


def test_a_key_changes_with_what_is_seen(tmp_path):
    draw(tmp_path / "a.png")
    clip = sample_of(scan(tmp_path), "a.png")
    others = [replace(clip, digest="0"), replace(clip, background="#000000"),
              replace(clip, bucket=replace(clip.bucket, width=128))]
    keys = {key_of(clip, 0, False), key_of(clip, 0, True), key_of(clip, 1, False),
            *(key_of(other, 0, False) for other in others)}
    assert len(keys) == 6
    assert key_of(replace(clip, captions=("else",), repeats=3), 0, False) == key_of(clip, 0, False)


def test_a_shelf_makes_once_and_throws_the_oldest_away(tmp_path):
    shelf, made = Shelf(tmp_path / "thumbs", max_bytes=1000), []

    def content(number: int) -> bytes:
        made.append(number)
        return bytes([number]) * 100

    for number in range(10):
        assert shelf.get(f"{number}", lambda number=number: content(number)) == bytes([number]) * 100
        os.utime(tmp_path / "thumbs" / f"{number}.webp", (number + 1, number + 1))
    assert shelf.get("0", lambda: content(0)) == bytes(100) and made == list(range(10))
    shelf.get("10", lambda: content(10))
    left = {path.stem for path in (tmp_path / "thumbs").iterdir()}
    assert sum(path.stat().st_size for path in (tmp_path / "thumbs").iterdir()) <= 1000
    assert "10" in left and "9" in left and "0" not in left


def test_a_shelf_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "thumbs").write_text("no folder")
    assert Shelf(tmp_path / "thumbs").get("a", lambda: b"x") == b"x"


def test_a_shelf_counts_what_was_there_before(tmp_path):
    first = Shelf(tmp_path, max_bytes=1000)
    for number in range(9):
        first.get(str(number), lambda: bytes(100))
    second = Shelf(tmp_path, max_bytes=1000)
    second.get("x", lambda: bytes(900))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


