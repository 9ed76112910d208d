"""Clips through ComfyUI: latents equal VAE Encode's, and clips and pictures are trained on together."""

import math

import pytest
import torch

from wantune.tests.support import clips, tools
from wantune.trainer.data import scan
from wantune.trainer.encoded import store
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("comfy")


def encode(folder, cache_folder, **settings):
    """The manifest and the cached dataset, with the small world's VAE and text encoder."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    settings = {"resolution": 64, "num_repeats": 1, "trigger_word": "zwx", "frame_buckets": (1, 5, 17), **settings}
    manifest = scan.scan(DatasetConfig(folder=str(folder), **settings))
    codec, text = WanCodec(tools.load_vae()), CaptionEncoder(tools.load_clip())
    return manifest, tools.drained(fill(manifest, Store(cache_folder), codec, {"text": text}))[1]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, comfy):
    """Four real pictures, three real clips, and a numbered clip of 24 fps."""
    folder = tools.write_pictures(tmp_path_factory.mktemp("mixed"))
    for path in clips.real():
        if path.name != "carphone_distorted.mp4":
            (folder / path.name).symlink_to(path)
            (folder / path.with_suffix(".txt").name).write_text(f"zwx {path.stem}", encoding="utf-8")
    clips.at_rate(folder / "numbers.mp4", 24, 12)
    return folder, *encode(folder, tmp_path_factory.mktemp("cache"))


def comfyui_frames(path) -> torch.Tensor:
    """A clip's frames as Load Video and Get Video Components give them: (F, H, W, 3) in 0..1."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path)).get_components().images


def test_buckets_and_latents_of_clips_and_pictures(mixed):
    _, manifest, cached = mixed
    assert not manifest.rejected
    shapes = {c.name: tuple(store.read_tensor(c.latent_paths[0]).shape) for c in cached.samples}
    assert shapes["bikes.mp4"][:2] == shapes["bigbuckbunny.mp4"][:2] == (16, 5)
    assert shapes["numbers.mp4"] == (16, 2, 8, 8) and shapes["astronaut.png"] == (16, 1, 8, 8)
    for clip in cached.samples:
        bucket = clip.bucket
        assert shapes[clip.name] == (16, (bucket.frames - 1) // 4 + 1, bucket.height // 8, bucket.width // 8)


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_latents_of_a_real_clip_are_what_vae_encode_gives(mixed, name):
    """ComfyUI's Load Video, the frames of the times k/16, the same scaling, VAE Encode, process_latent_in."""
    import comfy.latent_formats
    from PIL import Image

    from wantune.trainer.data import pictures

    folder, manifest, cached = mixed
    ((clip, stored),) = [(c, s) for c, s in zip(manifest.samples, cached.samples, strict=True) if s.name == name]
    images = comfyui_frames(folder / name)
    fps = {"carphone_pristine.mp4": 30000 / 1001}.get(name, 25)
    indices = [math.floor(k / 16 * fps + 1e-6) for k in range(clip.bucket.frames)]
    levels = images[indices] * 255
    # ComfyUI takes every pixel for a square; carphone's are wider than high
    chosen = [Image.fromarray(frame.round().clamp(0, 255).byte().numpy()).resize((clip.width, clip.height))
              for frame in levels]
    size = clip.bucket.width, clip.bucket.height
    pixels = torch.stack([torch.tensor(pictures.fit(image, *size)) for image in chosen]).float() / 255
    with torch.inference_mode():
        expected = comfy.latent_formats.Wan21().process_in(tools.load_vae().encode(pixels))[0]
    found = store.read_tensor(stored.latent_paths[0])
    if (levels - levels.round()).abs().max() < 1e-3:
        assert torch.equal(found, expected)
    else:  # newer versions decode to floats: other pixels by half a step
        error = ((found - expected).abs().mean() / expected.abs().mean()).item()
        print(f"{name}: {error:.4f} relative to ComfyUI's float frames")
        assert error < 0.02


def test_latents_of_our_own_pixels_are_bit_equal(mixed):
    import comfy.latent_formats

    from wantune.trainer.data import video

    _, manifest, cached = mixed
    vae = tools.load_vae()
    for clip, stored in zip(manifest.samples, cached.samples, strict=True):
        if clip.source:
            pixels = torch.from_numpy(video.read(clip.path, clip.name, clip.source, clip.bucket, 0, 16)).float() / 255
            with torch.inference_mode():
                expected = comfy.latent_formats.Wan21().process_in(vae.encode(pixels))[0]
            assert torch.equal(store.read_tensor(stored.latent_paths[0]), expected), clip.path.name


def test_a_clip_alone_gives_the_same_latent_as_in_a_mixed_dataset(mixed, tmp_path):
    folder, _, cached = mixed
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other name.mp4").write_bytes((folder / "bikes.mp4").read_bytes())
    _, alone = encode(tmp_path / "data", tmp_path / "cache")
    (other,) = (clip for clip in cached.samples if clip.name == "bikes.mp4")
    assert torch.equal(store.read_tensor(alone.samples[0].latent_paths[0]), store.read_tensor(other.latent_paths[0]))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """The node's training function, with its runs in a folder of the test."""
    import folder_paths

    from wantune.nodes import train

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return train.train


def test_clips_and_pictures_are_trained_on_together(mixed, train):
    model = tools.load_dit(tools.WORLD / "dit.safetensors")
    snapshot = tools.Snapshot(model)
    _, _, cached = mixed
    settings = TrainConfig(epochs=2, batch_size=2, learning_rate=1e-3, lora=LoraConfig(rank=8, alpha=8))
    lora, losses, _ = train(model, cached, "mixed", settings, tools.Watch())
    assert len({clip.bucket for clip in cached.samples}) >= 4
    assert len(losses) >= 2 * 5 and all(math.isfinite(loss) for loss in losses)
    assert any(value.abs().sum() > 0 for key, value in lora.items() if "lora_B" in key)
    snapshot.assert_untouched()


def test_a_clip_is_learned(train, tmp_path):
    """One clip of five frames, over and over: the loss of the last steps is well below that of the first."""
    (tmp_path / "data").mkdir()
    clips.at_rate(tmp_path / "data" / "numbers.mp4", 24, 12)
    _, cached = encode(tmp_path / "data", tmp_path / "cache", num_repeats=60)
    assert [clip.bucket.frames for clip in cached.samples] == [5]
    model = tools.load_dit(tools.WORLD / "dit.safetensors")
    settings = TrainConfig(epochs=1, batch_size=1, learning_rate=3e-3, lora=LoraConfig(rank=16, alpha=16),
                           gradient_checkpointing=False)
    _, losses, _ = train(model, cached, "clip", settings, tools.Watch())
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    print(f"loss {first:.3f} -> {last:.3f} in {len(losses)} steps")
    assert len(losses) == 60 and last < 0.7 * first


def test_random_windows_are_trained_on(train, tmp_path):
    (tmp_path / "data").mkdir()
    clips.at_rate(tmp_path / "data" / "numbers.mp4", 16, 30)
    manifest, cached = encode(tmp_path / "data", tmp_path / "cache", extraction="random", frame_buckets=(1, 5))
    assert len(manifest.samples[0].starts) == 8 and len(cached.samples[0].latent_paths) == 8
    model = tools.load_dit(tools.WORLD / "dit.safetensors")
    _, losses, _ = train(model, cached, "random", TrainConfig(epochs=4, lora=LoraConfig(rank=4)), tools.Watch())
    assert len(losses) == 4
