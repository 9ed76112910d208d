"""Image-to-video is learned, and from the frame that is given: on clips whose first frame alone tells their colour."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wantune.tests.support import clips, tools
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.runs.events import Finished, Started
from wantune.trainer.settings.data import FIRST_FRAME, DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.evaluate import held_out_loss
from wantune.trainer.training.run import Run

pytestmark = pytest.mark.usefixtures("comfy")

STEPS = 80
FRAMES, SIDE = 9, 64
COLORS = (230, 40, 40), (40, 230, 40), (60, 80, 255)
WIDTH = 32
TRAINED, HELD_OUT = ((0, 0), (16, 0), (0, 32), (16, 32)), ((0, 16), (16, 16))
"""Left and top of the square in the first frame of three clips; it then moves to the right by two pixels a frame."""


def picture_of(color: tuple[int, int, int], left: int, top: int):
    """What draws a frame of a clip by its number."""
    def draw(number: int) -> np.ndarray:
        frame = np.full((SIDE, SIDE, 3), 15, np.uint8)
        frame[top:top + WIDTH, left + 2 * number:left + 2 * number + WIDTH] = color
        return frame
    return draw


@pytest.fixture(scope="module")
def cached(comfy, tmp_path_factory):
    """The clips to train on, and the others held out: all with one caption."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec
    from wantune.nodes.backend.frame_encoders import ImageEncoder

    vae, encoded = tools.load_vae(), []
    codec, store = WanCodec(vae), Store(tmp_path_factory.mktemp("cache"))
    encoders = {"text": CaptionEncoder(tools.load_clip()), "image": ImageEncoder(vae, codec, FIRST_FRAME)}
    for places in (TRAINED, HELD_OUT):
        folder = tmp_path_factory.mktemp("clips")
        for number, (place, color) in enumerate(itertools.product(places, COLORS)):
            clips.at_rate(folder / f"{number:02}.mp4", 16, FRAMES, picture=picture_of(color, *place))
        config = DatasetConfig(folder=str(folder), resolution=SIDE, frame_buckets=(1, FRAMES), num_repeats=1,
                               trigger_word="zwx", condition=FIRST_FRAME)
        encoded.append(tools.drained(fill(scan.scan(config), store, codec, encoders))[1])
    return replace(encoded[0], held_out=encoded[1].samples)


@pytest.fixture(scope="module")
def model(comfy):
    """The small world's network with the channels of Wan2.2 I2V beside its own, which it does not know yet."""
    import comfy.sd

    state = load_file(tools.WORLD / "dit.safetensors")
    own = state["patch_embedding.weight"]
    generator = torch.Generator().manual_seed(0)
    beside = torch.randn(len(own), 20, *own.shape[2:], generator=generator) * 0.3 * own.std().item()
    state["patch_embedding.weight"] = torch.cat([own.float(), beside], dim=1).to(own.dtype)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state)


def losses(model, cached, folder, steps: int) -> tuple[dict[str, dict[float, float]], ...]:
    """The constant-noise loss of the samples that are trained on and of those held out, before and after training."""
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    denoiser, found = ComfyDenoiser(model), []
    assert denoiser.family.name == "Wan2.2 I2V"
    config = TrainConfig(epochs=steps, max_steps=steps, batch_size=3, learning_rate=2e-3,
                         lora=LoraConfig(rank=32, alpha=32), validation=ValidationConfig(evaluate_epochs=0))
    with Run(denoiser, cached, "squares", config, folder) as run:
        for event in run.events():
            if isinstance(event, Started | Finished):
                found.append({"trained": held_out_loss(denoiser, cached.samples),
                              "held out": held_out_loss(denoiser, cached.held_out)})
    return tuple(found)


def mean(loss: dict[float, float]) -> float:
    return sum(loss.values()) / len(loss)


def with_wrong_first_frames(cached):
    """Each of the clips that are trained on is given the first frame of that of the next colour in the same place."""
    samples = sorted(cached.samples, key=lambda sample: sample.name)
    turned = [samples[number + (-2 if number % 3 == 2 else 1)].windows for number in range(len(samples))]
    return replace(cached, digest="wrong", samples=tuple(
        replace(sample, windows=windows, content=f"wrong {sample.content}")
        for sample, windows in zip(samples, turned, strict=True)))


def test_three_clips_are_learned(model, cached, tmp_path):
    three = replace(cached, samples=cached.samples[:3], captions=cached.captions[:3], digest="three")
    before, after = losses(model, three, tmp_path, steps=60)
    print(f"loss {mean(before['trained']):.3f} -> {mean(after['trained']):.3f}")
    assert mean(after["trained"]) < 0.5 * mean(before["trained"])


def test_with_wrong_first_frames_others_are_learned_worse(model, cached, tmp_path):
    before, right = losses(model, cached, tmp_path / "right", STEPS)
    _, wrong = losses(model, with_wrong_first_frames(cached), tmp_path / "wrong", STEPS)
    print(before["held out"], right["held out"], wrong["held out"])
    assert mean(right["held out"]) < 0.5 * mean(before["held out"])
    assert mean(wrong["held out"]) > 1.05 * mean(right["held out"])
