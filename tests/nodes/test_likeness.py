"""Likeness to the training pictures and motion, beside the model without the LoRA, against cosines computed plainly."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wantune.tests.support import carried, frame_models, tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded.store import read_tensor, write_tensor
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    return trained.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clip_vision(comfy, tmp_path_factory):
    return frame_models.clip_vision(tmp_path_factory.mktemp("clip"), hidden_size=64)


def pixels_of(vae, latent_BCFHW: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        images = vae.decode(latent_BCFHW)
    return (images.reshape(-1, *images.shape[-3:]) * 255).round().clamp(0, 255).byte().numpy()


def pictures(world) -> list[np.ndarray]:
    """Each training picture as the VAE gives it back."""
    family = world.cached.family
    return [pixels_of(world.vae, family.denormalize(read_tensor(sample.latent_paths[0])[None]))[0]
            for sample in world.cached.samples]


def plainly(clip_vision, frames: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean over all pairs of the cosine of the angle between their embeddings."""
    def embedding(picture: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(picture)[None].float() / 255
        with torch.inference_mode():
            return clip_vision.encode_image(image).image_embeds[0].double().numpy()

    pairs = itertools.product(map(embedding, frames), map(embedding, others))
    return np.mean([one @ other / np.sqrt(one @ one) / np.sqrt(other @ other) for one, other in pairs])


def likeness(world, clip_vision, cached=None):
    from wantune.nodes.media.likeness import Likeness

    return Likeness(clip_vision, world.vae, cached or world.cached)


def moved(video: np.ndarray) -> float:
    return np.abs(video[1:].astype(np.float64) - video[:-1]).mean()


def test_likeness_is_the_mean_cosine_of_four_frames_and_the_training_pictures(world, clip_vision):
    video = np.random.default_rng(0).integers(0, 256, (7, 48, 80, 3), np.uint8)
    video[2:] //= 3
    (found, alone), fault = likeness(world, clip_vision).of([video, video[:1]])
    expected = plainly(clip_vision, [video[index] for index in (0, 2, 4, 6)], pictures(world))
    assert not fault and found == pytest.approx(expected, abs=1e-5)
    assert alone == pytest.approx(plainly(clip_vision, [video[0]], pictures(world)), abs=1e-5)
    assert found != pytest.approx(alone, abs=1e-3)


def test_a_video_of_the_training_picture_has_likeness_1(world, clip_vision):
    one = replace(world.cached, samples=world.cached.samples[:1])
    first, second = pictures(world)[:2]
    (same, other), _ = likeness(world, clip_vision, one).of([np.stack([first] * 5), np.stack([second] * 5)])
    assert same == pytest.approx(1, abs=1e-5) and other < 0.999


def test_the_pictures_are_spread_over_the_dataset_and_decoded_once(world, clip_vision, monkeypatch, tmp_path):
    """Of 20 the eighth that is looked at is the last one, a clip, of which the first frame counts."""
    one, other = world.cached.samples[:2]
    latent_CFHW = read_tensor(other.latent_paths[0])
    write_tensor(tmp_path / "clip.safetensors", torch.cat([latent_CFHW, -latent_CFHW, latent_CFHW * 0], 1))
    clip = replace(other, latent_paths=(tmp_path / "clip.safetensors",))
    measured = likeness(world, clip_vision, replace(world.cached, samples=(one,) * 19 + (clip,)))
    decoded, decode = [], world.vae.decode
    monkeypatch.setattr(world.vae, "decode", lambda latent: decoded.append(latent.shape[2]) or decode(latent))
    video = pictures(world)[1][None]
    decoded.clear()
    (found,), _ = measured.of([video])
    assert decoded == [1] * 8
    assert measured.of([video])[0] == (found,) and len(decoded) == 8
    first, last = pictures(world)[:2]
    assert found == pytest.approx(plainly(clip_vision, [video[0]], [first] * 7 + [last]), abs=1e-5)


def test_an_embedding_for_each_token_counts_by_their_mean_and_none_at_all_is_told(world, clip_vision):
    class Tokens:
        def encode_image(self, image):
            with torch.inference_mode():
                found = clip_vision.encode_image(image)
            found.image_embeds = torch.stack([found.image_embeds * 3, -found.image_embeds], 1)
            return found

    class Nothing:
        def encode_image(self, image):
            return {}

    video = pictures(world)[0][None]
    assert likeness(world, Tokens()).of([video])[0] == pytest.approx(likeness(world, clip_vision).of([video])[0])
    found, fault = likeness(world, Nothing()).of([video])
    assert found == () and fault.startswith("The CLIP vision, a Nothing, gives no embedding of a picture")


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "batch_size": 2, "learning_rate": 3e-3, "lora": LoraConfig(rank=4),
                          "validation": ValidationConfig(every_epochs=0, every_steps=0, every_minutes=0),
                          **settings})


def previews(world, text="zwx a red digit", **changes):
    from wantune.nodes.previews import PreviewSettings

    return PreviewSettings.execute(**{
        "positive": world.conditioning(text), "negative": world.conditioning(""), "vae": world.vae, "width": 64,
        "height": 64, "frames": 5, "steps": 2, "cfg": 1.0, "shift": 5.0, "seed": 7, "every_epochs": 1,
        "every_steps": 0, **changes}).result[0]


def trained_in(folder: Path, world, settings, **inputs) -> tuple:
    import folder_paths

    from wantune.nodes import train

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():  # as ComfyUI calls nodes
        patch.setattr(folder_paths, "output_directory", str(folder))
        watch = tools.Watch()
        return (*train.train(world.model, world.cached, "run", settings, watch, **inputs), watch.events)


@pytest.fixture
def train(world, tmp_path):
    return lambda place, settings, **inputs: trained_in(tmp_path / place, world, settings, **inputs)


@pytest.fixture(scope="module")
def quiet(world, tmp_path_factory):
    """LoRA and losses of the run without previews."""
    return trained_in(tmp_path_factory.mktemp("quiet"), world, config())[:2]


def of(events, kind: str) -> list:
    return [event for event in events if type(event).__name__ == kind]


def same(one, other) -> bool:
    return one[1] == other[1] and all(torch.equal(one[0][key], value) for key, value in other[0].items())


@pytest.mark.parametrize("has_model", [False, True])
def test_a_run_measures_its_previews_and_learns_as_without(world, clip_vision, train, quiet, monkeypatch, has_model):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    snapshot = tools.Snapshot(world.model)
    decoded, decode = [], world.vae.decode
    monkeypatch.setattr(world.vae, "decode", lambda latent: decoded.append(latent.clone()) or decode(latent))
    model = {"model": carried.shifted(world.model)} if has_model else {}
    *found, folder, events = train("shown", config(), previews=previews(
        world, clip_vision=clip_vision, positive_2=world.conditioning("a green digit"), **model))
    assert same(found, quiet)
    snapshot.assert_untouched()
    made = of(events, "Previewed")
    assert [event.step for event in made] == [0, 2] and not of(events, "Noted")
    monkeypatch.undo()
    videos = [pixels_of(world.vae, latent) for latent in decoded if latent.shape[2] == 2]  # not the training pictures
    assert len(videos) == 4 and len(decoded) == 4 + len(world.cached.samples)
    for number, event in enumerate(made):
        shown = videos[2 * number:2 * number + 2]
        assert event.motion == pytest.approx([moved(video) for video in shown], rel=1e-6)
        assert event.likeness == pytest.approx(
            [plainly(clip_vision, [video[index] for index in (0, 1, 3, 4)], pictures(world)) for video in shown],
            abs=1e-5)
        base = ((), ()) if number == 0 else (made[0].motion, made[0].likeness)
        assert (event.base_motion, event.base_likeness) == base
    assert made[0].likeness != made[1].likeness
    board = EventAccumulator(folder).Reload()
    for name in ("likeness", "motion"):
        for prompt in (0, 1):
            assert [(point.step, point.value) for point in board.Scalars(f"preview {name}/prompt {prompt + 1}")] == [
                (event.step, pytest.approx(getattr(event, name)[prompt])) for event in made]


def test_after_an_interruption_the_base_stands_in_the_log_and_counts_for_the_same_prompt_only(
    world, clip_vision, train, monkeypatch
):
    from wantune.nodes.media import previewer

    def cancelled(*_arguments):
        raise KeyboardInterrupt

    for place, text in (("same", "zwx a red digit"), ("other", "zwx a green digit")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(previewer.Previewer, "is_due", lambda self, step, *_others: step == 1 and cancelled())
            train(place, config(), previews=previews(world, clip_vision=clip_vision))
        *_, folder, events = train(place, config(), previews=previews(world, text, clip_vision=clip_vision))
        (base,) = [line for line in map(json.loads, Path(folder, "log.jsonl").read_text("utf-8").splitlines())
                   if line["event"] == "Previewed" and line["name"] == "base"]
        (last,) = of(events, "Previewed")
        assert last.step == 2 and base["motion"] and base["likeness"]
        expected = (tuple(base["motion"]), tuple(base["likeness"])) if place == "same" else ((), ())
        assert (last.base_motion, last.base_likeness) == expected


def test_too_little_memory_for_clip_vision_leaves_out_the_likeness_only(
    world, clip_vision, train, quiet, monkeypatch
):
    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("Allocation on device\nfor programmers")

    monkeypatch.setattr(clip_vision, "encode_image", full)
    *found, _, events = train("shown", config(), previews=previews(world, clip_vision=clip_vision))
    assert same(found, quiet)
    assert [(len(event.motion), event.likeness) for event in of(events, "Previewed")] == [(1, ())] * 2
    assert {event.sentence for event in of(events, "Noted")} == {
        "The likeness to the training pictures was left out, as there was too little memory for CLIP vision; end other "
        "programs that use the card, or disconnect clip_vision. (Allocation on device)"}


def test_what_is_no_clip_vision_is_refused(world):
    with pytest.raises(UserError, match="clip_vision of Preview Settings is a VAE, which looks at no pictures; "
                                        "connect Load CLIP Vision, or leave it empty."):
        previews(world, clip_vision=world.vae)


def test_a_picture_has_no_motion_and_what_is_not_known_is_not_told(world, train):
    from wantune.nodes.media.measured import told, told_of

    *_, events = train("a", config(max_steps=1), previews=previews(world, frames=1))
    for event in of(events, "Previewed"):
        assert (event.motion, event.base_motion, event.likeness) == ((), (), ()) and told_of(event) == ""
    assert told(4.5, 5.0, 0.7149, 0.58) == "likeness 0.71 (base 0.58), motion 0.90 of base"
    assert told(4.5, None, 0.7149, None) == "likeness 0.71" and told(4.5, 0.0, None, 0.5) == ""


def test_the_previews_of_a_pair_are_measured_and_its_pictures_decoded_once(world, clip_vision, tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes import pair

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    models = {expert: tools.load_dit(tools.random_dit(tmp_path / expert, seed=seed))
              for expert, seed in (("high", 1), ("low", 2)) if (tmp_path / expert).mkdir() is None}
    decoded, decode = [], world.vae.decode
    monkeypatch.setattr(world.vae, "decode", lambda latent: decoded.append(latent.shape[2]) or decode(latent))
    watch, shown = tools.PairWatch(), previews(world, clip_vision=clip_vision)
    pair.train({expert: pair.Expert(model=model) for expert, model in models.items()}, world.cached, "a",
               config(max_steps=1), watch, previews=shown)
    made = [(expert, event) for expert, event in watch.events if type(event).__name__ == "Previewed"]
    assert [(expert, event.step) for expert, event in made] == [("high", 0), ("high", 1), ("low", 0), ("low", 1)]
    assert all(event.likeness and event.motion for _, event in made) and decoded.count(1) == len(world.cached.samples)
    for base, tuned in (made[:2], made[2:]):
        assert tuned[1].base_likeness == base[1].likeness and tuned[1].base_motion == base[1].motion
