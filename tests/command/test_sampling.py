"""`wantune sample` of two experts and of models that begin with a picture."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from wantune.tests.command.conftest import SETTINGS
from wantune.tests.support import frame_models, tools, wan_models
from wantune.tests.support.videos import read_back

pytestmark = pytest.mark.usefixtures("comfy")

SAMPLE = "--width", 64, "--height", 64, "--frames", 5, "--steps", 4, "--prompts", "a red three digit moving right"


@pytest.fixture
def settings(here):
    (here / "settings.toml").write_text(SETTINGS.replace("{world}", tools.WORLD.as_posix()), encoding="utf-8")
    return here / "settings.toml"


def frames(path) -> np.ndarray:
    return np.stack(read_back(path)[0]).astype(int)


def test_two_experts_share_the_steps(call, here, settings):
    """The same model twice gives its own video; another one at the end changes it."""
    low = here / "low.safetensors"
    save_file({name: value * 0.9 for name, value in load_file(tools.WORLD / "dit.safetensors").items()}, low)
    both = "--model-low", tools.WORLD / "dit.safetensors", "--switch-at-step", 2
    videos = {}
    for name, experts in {"one": (), "same": both, "other": ("--model-low", low, "--switch-at-step", 2)}.items():
        made = call("sample", settings, *SAMPLE, *experts, "-o", here / f"{name}.mp4")
        assert made.code == 0 and made.out.strip() == str(here / f"{name}.mp4"), made.err
        videos[name] = frames(here / f"{name}.mp4")
    assert videos["one"].shape == (5, 64, 64, 3)
    assert (videos["same"] == videos["one"]).all() and np.abs(videos["other"] - videos["one"]).mean() > 1


@pytest.mark.parametrize("given, told", [
    (("--model-low", "{dit}"), "switch_at_step is 0; give the step of 4 from which it samples"),
    (("--lora-low", "a.safetensors"), "--lora-low is given without a model_low"),
    (("--first-frame", "picture.png"), "Wan2.1 T2V takes no picture; leave --first-frame out."),
])
def test_what_does_not_fit_is_said_and_nothing_is_written(call, here, settings, given, told):
    given = [each.format(dit=tools.WORLD / "dit.safetensors") for each in given]
    refused = call("sample", settings, *SAMPLE, *given)
    assert refused.code == 1 and told in refused.err.strip().splitlines()[-1], refused.err
    assert not list(here.glob("*.mp4"))


@pytest.fixture
def i2v(here, settings):
    """Flags of an image-to-video model of random weights, and two pictures."""
    wan_models.write("Wan2.1 I2V", here / "i2v.safetensors")
    frame_models.write_clip_vision(here / "clip_vision.safetensors")
    for name, color in (("red", (250, 30, 20)), ("blue", (20, 40, 240))):
        Image.new("RGB", (90, 70), color).save(here / f"{name}.png")
    return "--model", here / "i2v.safetensors", "--clip-vision", here / "clip_vision.safetensors"


def test_image_to_video_begins_with_the_picture(call, here, settings, i2v):
    for name in ("red", "blue"):
        made = call(
            "sample", settings, *SAMPLE, *i2v, "--first-frame", here / f"{name}.png", "-o", here / f"{name}.mp4")
        assert made.code == 0, made.err
    assert np.abs(frames(here / "red.mp4") - frames(here / "blue.mp4")).mean() > 1, "the picture is looked at"


def test_image_to_video_needs_a_picture_that_can_be_read(call, here, settings, i2v):
    missing = call("sample", settings, *SAMPLE, *i2v)
    assert missing.code == 1 and "begins with a picture; give it with --first-frame" in missing.err
    (here / "broken.png").write_bytes(b"no picture")
    broken = call("sample", settings, *SAMPLE, *i2v, "--first-frame", here / "broken.png")
    assert broken.code == 1 and "broken.png is no picture that can be read" in broken.err
