"""The cache: once per content, never stale, never half."""

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded import fill as filling
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import DatasetConfig


class CountingCodec:
    """Stands for the VAE: an eighth of the size, one channel's mean repeated."""

    def __init__(self, name: str = "vae", bad: bool = False) -> None:
        self.id, self.calls, self.bad = name, 0, bad

    def encode(self, pixels_FHW3):
        self.calls += 1
        frames, height, width, _ = pixels_FHW3.shape
        latent = torch.full((16, (frames - 1) // 4 + 1, height // 8, width // 8), float(pixels_FHW3.mean()))
        return latent * float("nan") if self.bad else latent


class CountingText:
    """Stands for UMT5: one row a word, and one where there is none."""

    def __init__(self, name: str = "umt5") -> None:
        self.id, self.calls = name, 0

    def encode(self, caption):
        self.calls += 1
        return torch.ones(max(1, len(caption.split())), 8)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, two of them with the same caption."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index, caption in enumerate(["one two", "one two", "three"]):
        Image.new("RGB", (64 + 32 * index, 64), (index * 50, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


def fill(folder, codec, text):
    """The progress events and the result."""
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, num_repeats=1))
    return tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), codec, {"text": text}))


def test_each_content_is_encoded_once(folder):
    codec, text = CountingCodec(), CountingText()
    events, cached = fill(folder, codec, text)
    assert (codec.calls, text.calls) == (3, 3), "two captions, and the empty one"
    assert [(event.kind, event.done, event.total) for event in events] == [
        *(("captions", done, 3) for done in (1, 2, 3)), ("latents", 1, 3), ("latents", 2, 3), ("latents", 3, 3)]
    assert len(cached.samples) == 3 and cached.captions == ("one two", "one two", "three")
    fill(folder, codec, text)
    assert (codec.calls, text.calls) == (3, 3)


def test_a_changed_caption_redoes_that_text_only(folder):
    codec, text = CountingCodec(), CountingText()
    before = fill(folder, codec, text)[1].digest
    (folder / "2.txt").write_text("four")
    after = fill(folder, codec, text)[1].digest
    assert (codec.calls, text.calls) == (3, 4) and before != after


def test_a_changed_picture_of_the_same_name_redoes_that_latent_only(folder):
    codec, text = CountingCodec(), CountingText()
    fill(folder, codec, text)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / "0.png")
    fill(folder, codec, text)
    assert (codec.calls, text.calls) == (4, 3)


def test_another_encoder_redoes_its_part_only(folder):
    codec, text = CountingCodec(), CountingText()
    fill(folder, codec, text)
    other = CountingCodec("other vae")
    fill(folder, other, text)
    assert (other.calls, text.calls) == (3, 3)


def test_another_resolution_redoes_the_latents(folder):
    codec, text = CountingCodec(), CountingText()
    fill(folder, codec, text)
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=32, num_repeats=1))
    list(filling.fill(manifest, Store(folder.parent / "cache"), codec, {"text": text}))
    assert (codec.calls, text.calls) == (6, 3)


@pytest.mark.parametrize("keep", [0, 1, 7, 60, -1])
def test_a_truncated_file_is_made_again(folder, keep):
    codec, text = CountingCodec(), CountingText()
    cached = fill(folder, codec, text)[1]
    path = cached.samples[0].latent_paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    fill(folder, codec, text)
    assert codec.calls == 4 and path.read_bytes() == whole


def test_a_foreign_file_is_made_again(folder):
    codec, text = CountingCodec(), CountingText()
    path = fill(folder, codec, text)[1].samples[0].captions[0]["text"]
    path.write_bytes(b"not safetensors at all" * 10)
    fill(folder, codec, text)
    assert text.calls == 4


def test_stopping_in_the_middle_keeps_what_is_done(folder):
    codec, text = CountingCodec(), CountingText()
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, num_repeats=1))
    progress = filling.fill(manifest, Store(folder.parent / "cache"), codec, {"text": text})
    for _ in range(4):
        next(progress)
    progress.close()
    assert (codec.calls, text.calls) == (1, 3)
    fill(folder, codec, text)
    assert (codec.calls, text.calls) == (3, 3), "the one that was encoded last was kept, too"
    assert not list(folder.parent.rglob("*.tmp"))


def test_a_batch_is_as_long_as_its_longest_text(folder):
    cached = fill(folder, CountingCodec(), CountingText())[1]
    short = replace(cached.samples[0], captions=cached.samples[2].captions)
    batch = read_batch([cached.samples[0].visit(0), short.visit(0)], cached.family.conditions)
    text = batch.conditions["text"]
    assert batch.latent_BCFHW.shape == (2, 16, 1, 8, 8) and text.shape == (2, 2, 8) and text.dtype == torch.float32
    assert (text[0] == 1).all() and (text[1, 0] == 1).all() and (text[1, 1] == 0).all()
    assert batch.mask_B11HW is None


def test_prior_captions_are_encoded_with_the_others_and_read_in_their_place(folder):
    """What they are changes neither the dataset's digest nor any file there was."""
    codec, text = CountingCodec(), CountingText()

    def cached(**settings):
        config = DatasetConfig(folder=str(folder), resolution=64, num_repeats=1, trigger_word="two", **settings)
        found = filling.fill(scan.scan(config), Store(folder.parent / "cache"), codec, {"text": text})
        return tools.drained(found)[1]

    plain, calls = cached(), text.calls
    other = cached(class_word="a big red dog", preserve_prompts=("a cat",))
    assert (codec.calls, text.calls) == (3, calls + 3), "the two captions with the class word, and the prompt"
    assert (plain.digest, plain.former_digest) == (other.digest, other.former_digest)
    assert plain.prior_digest != other.prior_digest == cached(
        class_word="a big red dog", preserve_prompts=("a cat",)).prior_digest
    first = other.samples[0]
    assert first.captions == plain.samples[0].captions and set(first.prior_captions[0].values()) < set(first.paths)
    lengths = [read_batch([first.prior_visit(number)], other.family.conditions).conditions["text"].shape[1]
               for number in range(4)]
    assert lengths == [len("one a big red dog".split()), len("a cat".split()), 1, len("one a big red dog".split())]
    assert first.prior_visit(1).latent_path == first.visit(1).latent_path


def test_a_value_that_is_not_finite_is_refused_and_names_the_file(folder):
    with pytest.raises(UserError, match="0.png"):
        fill(folder, CountingCodec(bad=True), CountingText())


def test_a_picture_that_went_away_is_left_out_and_named(folder):
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, num_repeats=1))
    os.remove(folder / "1.png")
    encoders = CountingCodec(), {"text": CountingText()}
    cached = tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), *encoders))[1]
    assert [clip.name for clip in cached.samples] == ["0.png", "2.png"] and cached.captions == ("one two", "three")
    assert "1.png is gone" in cached.left_out[0].reason


def test_a_picture_that_changed_after_the_scan_never_passes_for_what_was_scanned(folder):
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, num_repeats=1))
    Image.new("RGB", (96, 64), (1, 2, 3)).save(folder / "1.png")
    encoders = CountingCodec(), {"text": CountingText()}
    cached = tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), *encoders))[1]
    assert [clip.name for clip in cached.samples] == ["0.png", "2.png"]
    assert "1.png changed since it was scanned; queue again" in cached.left_out[0].reason
    assert cached.digest != fill(folder, CountingCodec(), CountingText())[1].digest


def test_a_cache_file_that_went_away_is_named(folder):
    cached = fill(folder, CountingCodec(), CountingText())[1]
    os.remove(cached.samples[0].latent_paths[0])
    with pytest.raises(UserError, match="gone or damaged .* queue again"):
        read_batch([cached.samples[0].visit(0)], cached.family.conditions)
