"""Clips in a dataset: windows of each mode, the report, the cache, and the order of samples."""

from collections import Counter

import pytest
import torch
from PIL import Image

from wantune.tests.support import clips, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import report
from wantune.trainer.data import scan as scanning
from wantune.trainer.encoded import fill as filling
from wantune.trainer.encoded import store
from wantune.trainer.encoded.batches import BucketSampler, read_batch
from wantune.trainer.encoded.store import Store
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.data import EXTRACTION_MODES, DatasetConfig


class NumberCodec:
    """Stands for the VAE: keeps the number that a clip's first frame shows."""

    id = "vae"

    def __init__(self) -> None:
        self.seen = []

    def encode(self, pixels_FHW3):
        self.seen.append([clips.number_of(frame) for frame in pixels_FHW3])
        return torch.full((16, (len(pixels_FHW3) - 1) // 4 + 1, 8, 8), float(self.seen[-1][0]))


class Text:
    """Stands for UMT5."""

    id = "umt5"

    def encode(self, caption):
        return torch.ones(1, 8)


@pytest.fixture
def folder(tmp_path):
    """A clip of 100 frames at 16 fps, a static gif and a picture."""
    folder = tmp_path / "data"
    folder.mkdir()
    clips.at_rate(folder / "clip.mp4", 16, 100)
    (folder / "clip.txt").write_text("zwx counting")
    for name in ("picture.png", "still.gif"):
        Image.fromarray(clips.numbered(1)).save(folder / name)
    return folder


def scan(folder, **settings):
    settings = {"resolution": 64, "trigger_word": "zwx", "frame_buckets": (1, 17, 33), "num_repeats": 2, **settings}
    return scanning.scan(DatasetConfig(folder=str(folder), **settings))


def fill(folder, codec, **settings):
    store = Store(folder.parent / "cache")
    return tools.drained(filling.fill(scan(folder, **settings), store, codec, {"text": Text()}))[1]


@pytest.mark.parametrize(("mode", "starts"), [
    ("start", [(0,)]), ("middle", [(33,)]), ("uniform", [(0,), (22,), (45,), (67,)]), ("chunks", [(0,), (33,), (66,)]),
])
def test_each_mode_gives_its_windows(folder, mode, starts):
    manifest = scan(folder, extraction=mode)
    assert [clip.starts for clip in manifest.samples if clip.source] == starts
    assert {str(clip.bucket) for clip in manifest.samples} == {"64x64x33", "64x64"}


def test_the_report_says_what_is_used_of_each_clip(folder):
    lines = report.text(scan(folder, extraction="chunks"))
    assert "3 of 3 files are used" in lines
    assert ('clip.mp4: 128x128, 100 frames at 16 fps -> 64x64x33, frames 33-65 of 100 at 16 fps, x2, "zwx counting"'
            in lines)
    assert "bucket 64x64x33: 1 file in 3 windows, 6 samples an epoch, 144 tokens a step" in lines
    assert "bucket 64x64: 2 files, 4 samples an epoch, 16 tokens a step" in lines
    assert "10 samples an epoch" in lines


def test_a_wrong_mode_is_named(tmp_path):
    with pytest.raises(UserError, match="extraction is 'end'; choose one of start, middle"):
        DatasetConfig(folder=str(tmp_path), extraction="end")


def test_the_digest_follows_the_windows(folder):
    assert len({scan(folder, extraction=mode).digest for mode in EXTRACTION_MODES}) == len(EXTRACTION_MODES)


def test_a_latent_is_kept_for_each_window_and_shared_between_modes(folder):
    codec = NumberCodec()
    cached = fill(folder, codec, extraction="chunks")
    latents = [store.read_tensor(clip.latent_paths[0]) for clip in cached.samples]
    assert [tuple(latent.shape) for latent in latents] == [(16, 9, 8, 8)] * 3 + [(16, 1, 8, 8)] * 2
    assert codec.seen[:3] == [list(range(start, start + 33)) for start in (0, 33, 66)]
    assert len(codec.seen) == 5
    fill(folder, codec, extraction="start")
    assert len(codec.seen) == 5, "the first chunk is the start"
    fill(folder, codec, extraction="middle")
    assert len(codec.seen) == 5, "and the second the middle"
    fill(folder, codec, extraction="start", frame_buckets=(1, 17))
    assert len(codec.seen) == 6 and len(codec.seen[-1]) == 17


def test_random_windows_take_turns_whenever_the_clip_is_seen(folder):
    manifest = scan(folder, extraction="random")
    (clip,) = (clip for clip in manifest.samples if clip.source)
    assert len(clip.starts) == 8
    cached = fill(folder, NumberCodec(), extraction="random")

    def epochs(count):
        sampler = BucketSampler(cached.samples, 1, seed=0)
        batches = [sampler.next() for _ in range(count * sampler.steps_per_epoch)]
        latents = [read_batch(batch, WAN21_T2V.conditions).latent_BCFHW for batch in batches]
        return [int(latent[0, 0, 0, 0, 0]) for latent in latents if latent.shape[2] > 1]

    assert Counter(epochs(4)) == Counter(clip.starts), "two repeats in four epochs: each of the eight windows once"
    assert epochs(8)[8:] != epochs(4) and Counter(epochs(8)[8:]) == Counter(epochs(4))
    assert set(epochs(1)) == set(clip.starts[:2])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_trained_on_as_a_clip(folder, suffix):
    frames = [Image.fromarray(clips.numbered(number)) for number in range(20)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(folder / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100, **options)
    codec = NumberCodec()
    cached = fill(folder, codec)
    assert (cached.samples[0].name, cached.samples[0].bucket.frames) == (f"a.{suffix}", 33)
    assert codec.seen[0] == [min(k * 10 // 16, 19) for k in range(33)]
    assert "20 frames at 10 fps -> 64x64x33, frames 0-32 of 32 at 16 fps" in report.text(scan(folder))


@pytest.mark.parametrize("name", ["with space", "it's \"quoted\"", "100%03d", "a:b", "猫 🐈"])
def test_odd_names_are_read(folder, name, monkeypatch):
    (folder / "clip.mp4").rename(folder / f"{name}.mp4")
    (folder / "clip.txt").rename(folder / f"{name}.txt")
    monkeypatch.chdir(folder)
    (clip,) = (clip for clip in scan(".").samples if clip.source)
    assert clip.captions[0] == "zwx counting"


def test_a_clip_that_went_away_is_left_out_and_named(folder):
    manifest = scan(folder)
    (folder / "clip.mp4").unlink()
    cached = tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), NumberCodec(), {"text": Text()}))[1]
    assert [clip.name for clip in cached.samples] == ["picture.png", "still.gif"]
    assert "clip.mp4 is gone" in cached.left_out[0].reason and "queue again" in cached.left_out[0].reason


def test_a_clip_that_changed_after_the_scan_is_left_out_and_named(folder):
    manifest = scan(folder, extraction="chunks")
    clips.at_rate(folder / "clip.mp4", 16, 70)
    cached = tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), NumberCodec(), {"text": Text()}))[1]
    assert [clip.name for clip in cached.samples] == ["picture.png", "still.gif"]
    assert [each.reason for each in cached.left_out] == [
        "clip.mp4 changed since it was scanned; queue again to use it as it is now."]
