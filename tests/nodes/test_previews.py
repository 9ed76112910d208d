"""Previews: ComfyUI's own sampling on the model that is trained, and nothing of the training is disturbed."""

import numpy as np
import pytest
import torch
from PIL import Image

from wantune.tests.support import tools
from wantune.tests.support.videos import read_back
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def world(tmp_path_factory, comfy):
    """(encoded pictures, model, VAE, text encoder)"""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    vae, clip = tools.load_vae(), tools.load_clip()
    folder = tools.write_pictures(tmp_path_factory.mktemp("data"))
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, num_repeats=1, trigger_word="zwx"))
    store = Store(tmp_path_factory.mktemp("cache"))
    cached = tools.drained(fill(manifest, store, WanCodec(vae), {"text": CaptionEncoder(clip)}))[1]
    return cached, tools.load_dit(tools.WORLD / "dit.safetensors"), vae, clip


def conditioning(clip, text: str) -> list:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def previews(world, **changes):
    from wantune.nodes.previews import PreviewSettings

    _, _, vae, clip = world
    inputs = {"positive": conditioning(clip, "zwx a red digit"), "negative": conditioning(clip, ""), "vae": vae,
              "width": 64, "height": 64, "frames": 5, "steps": 3, "cfg": 3.0, "shift": 5.0, "seed": 7,
              "every_epochs": 1, "every_steps": 0, **changes}
    return PreviewSettings.execute(**inputs).result[0]


@pytest.fixture
def train(monkeypatch, world, tmp_path):
    import folder_paths

    from wantune.nodes import train

    def run(place, settings, **inputs):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / place))
        watch = tools.Watch()
        return (*train.train(world[1], world[0], "run", settings, watch, **inputs), watch.events)

    return run


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 2, "learning_rate": 3e-3, "lora": LoraConfig(rank=4),
                          "validation": ValidationConfig(every_epochs=0), **settings})


def test_a_preview_is_what_ksampler_gives_with_the_lora_applied(world, train, tmp_path):
    """The live adapter through our way to the model against Apply LoRA and ComfyUI's own sampling."""
    import comfy.sample
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    from wantune.nodes.backend.applied import apply

    _, model, vae, clip = world
    lora, *_, folder, _ = train("a", config(), previews=previews(world))
    positive, negative = conditioning(clip, "zwx a red digit"), conditioning(clip, "")

    def sampled(model) -> np.ndarray:
        (shifted,) = ModelSamplingSD3().patch(model, 5.0)
        with torch.inference_mode():
            latent = torch.zeros(1, 16, 2, 8, 8)
            noise = comfy.sample.prepare_noise(latent, 7)
            found = comfy.sample.sample(shifted, noise, 3, 3.0, "euler", "simple", positive, negative, latent, seed=7,
                                        disable_pbar=True)
            images = vae.decode(found)
        return (images.reshape(-1, 64, 64, 3) * 255).round().clamp(0, 255).numpy()

    from pathlib import Path

    step = sorted(Path(folder, "samples").glob("step_*.mp4"))[-1]
    for path, expected in ((Path(folder, "samples", "base_0.mp4"), sampled(model)),
                           (step, sampled(apply(model, lora, 1.0)[0]))):
        found = read_back(path)[0].astype(np.float32)
        assert found.shape == (5, 64, 64, 3)
        assert np.abs(found - expected).mean() < 4, "but for the video's compression"
    assert np.abs(read_back(step)[0].astype(np.float32) - sampled(model)).mean() > 1, "the LoRA is seen"


def test_previews_change_nothing_of_what_is_learned_and_leave_the_model(world, train):
    snapshot = tools.Snapshot(world[1])
    for optimizer in (OptimizerConfig(), OptimizerConfig(ema_decay=0.9)):
        for checkpointing in (False, True):
            settings = config(optimizer=optimizer, gradient_checkpointing=checkpointing)
            name = f"{optimizer.ema_decay} {checkpointing}"
            quiet, losses, *_ = train(f"quiet {name}", settings)
            shown, found, *_ = train(f"shown {name}", settings, previews=previews(world, every_steps=1))
            assert found == losses and all(torch.equal(shown[key], value) for key, value in quiet.items())
    snapshot.assert_untouched()


def test_each_prompt_gets_a_video_and_a_strip_at_its_time(world, train):
    from pathlib import Path

    _, _, vae, clip = world
    more = {"positive_2": conditioning(clip, "another prompt"), "cfg": 1.0}
    *_, folder, events = train("a", config(epochs=3), previews=previews(world, **more))
    made = [event for event in events if type(event).__name__ == "Previewed"]
    per_epoch = next(event.steps_per_epoch for event in events if type(event).__name__ == "Started")
    assert [event.step for event in made] == [0, per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert list(Path(folder).glob("events.out.tfevents*")), "and in TensorBoard"
    for event in made:
        assert len(event.files) == 2
        for name in event.files:
            assert read_back(Path(folder, name))[0].shape == (5, 64, 64, 3)
            with Image.open(Path(folder, name).with_suffix(".jpg")) as image:
                assert image.size == (5 * 64, 64)


def test_cancel_in_the_middle_of_a_preview_keeps_what_was_learned(world, train, monkeypatch):
    import comfy.model_management

    from wantune.nodes.media import sampling

    whole, losses, *_ = train("whole", config())
    snapshot, sample, calls = tools.Snapshot(world[1]), sampling.sample_in_training, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return sample(*arguments)

    monkeypatch.setattr(sampling, "sample_in_training", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train("parts", config(), previews=previews(world, every_steps=1))
    snapshot.assert_untouched()
    parts, found, _, events = train("parts", config(), previews=previews(world))
    assert events[0].step == 2 and found == losses
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_a_wrong_number_of_frames_is_refused(world):
    with pytest.raises(UserError, match="frames is 6; Wan takes 4n"):
        previews(world, frames=6)


def test_nan_gives_a_black_preview_with_a_warning_and_the_run_goes_on(world, train, monkeypatch, caplog):
    from pathlib import Path

    _, losses, *_ = train("quiet", config())
    monkeypatch.setattr(world[2], "decode", lambda latent: torch.full((1, 5, 64, 64, 3), float("nan")))
    *_, found, folder, _ = train("nan", config(), previews=previews(world))
    assert found == losses and "The preview base_0 is black" in caplog.text
    assert not read_back(Path(folder, "samples", "base_0.mp4"))[0].any()
