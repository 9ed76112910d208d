"""Dataset Settings' model, condition and condition_dropout, through Load Dataset and Cache Latents."""

import asyncio

import pytest
import torch

from wantune.tests.support import clips, frame_models, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.store import read_tensor
from wantune.trainer.model.wan21 import WAN21_I2V
from wantune.trainer.model.wan22 import WAN22_5B

pytestmark = pytest.mark.usefixtures("comfy")

FIVE = "Wan2.2 5B"


@pytest.fixture
def nodes(comfy, tmp_path, monkeypatch) -> dict:
    """The nodes by their ids without the prefix, with ComfyUI's folders in a folder of the test."""
    import folder_paths

    from wantune.nodes import WanTuneExtension

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return {node.GET_SCHEMA().node_id.removeprefix("WanTune_"): node
            for node in asyncio.run(WanTuneExtension().get_node_list())}


@pytest.fixture
def folder(tmp_path):
    """A picture and a clip of 1.5 seconds."""
    folder = tools.write_pictures(tmp_path / "data", (150, 150))
    for name in ("rocket", "coffee", "chelsea"):
        for path in folder.glob(f"{name}.*"):
            path.unlink()
    clips.at_rate(folder / "clip.mp4", 30, 45)
    return folder


def loaded(nodes, folder, settings: dict | None):
    """The dataset of Load Dataset, with a Dataset Settings if there are any."""
    inputs = {"folder": str(folder), "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1, 5",
              "num_repeats": 2, "validation_items": 0}
    if settings is not None:
        inputs["settings"] = nodes["DatasetSettings"].execute(**settings).result[0]
    return nodes["LoadDataset"].execute(**inputs).result[0]


def encoded(nodes, dataset, vae, **inputs):
    """The cached dataset, and the text in the node."""
    output = nodes["CacheLatents"].execute(dataset, vae, tools.load_clip(), **inputs)
    return output.result[0], output.ui.as_dict()["text"][0]


def test_image_to_video_of_wan21_is_cached_with_its_first_frames_and_clip_vision(nodes, folder, tmp_path):
    dataset = loaded(nodes, folder, {"condition": "first frame", "condition_dropout": 0.1})
    cached, text = encoded(nodes, dataset, tools.load_vae(), clip_vision=frame_models.clip_vision(tmp_path))
    assert cached.kinds == {"text", "image", "clip_vision"} and cached.condition == "first frame"
    assert {sample.condition_dropout for sample in cached.samples} == {0.1} and "note" not in text
    for sample in cached.samples:
        batch = read_batch([sample.visit(0)], WAN21_I2V.conditions)
        frames, rows, columns = batch.latent_BCFHW.shape[2:]
        assert batch.conditions["image"].shape == (1, 20, frames, rows, columns)
        assert batch.conditions["clip_vision"].shape == (1, 257, 1280)
        # of a still the whole is given; the VAE puts what is given where the latent of the clip has it
        if frames == 1:
            given = WAN21_I2V.normalize(batch.conditions["image"][:, :16])
            torch.testing.assert_close(given, batch.latent_BCFHW, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("condition", "sizes"), [
    ("control clip and first frame", {"control": (16, 2), "reference": (16, 1), "clip_vision": (257, 1280)}),
    ("VACE control clip", {"vace": (32, 2)})])
def test_control_clips_are_cached_beside_their_clips(nodes, folder, tmp_path, condition, sizes):
    clips.at_rate(tmp_path / "data" / "clip.mov", 30, 45, picture=lambda number: 255 - clips.numbered(number))
    (folder / "control").mkdir()
    (folder / "clip.mov").rename(folder / "control" / "clip.mov")
    dataset = loaded(nodes, folder, {"condition": condition})
    assert [rejection.reason for rejection in dataset.rejected] == [
        "astronaut.png has no control clip; put one of the same name into a folder control beside it."]
    vision = frame_models.clip_vision(tmp_path) if "clip_vision" in sizes else None
    cached, _ = encoded(nodes, dataset, tools.load_vae(), clip_vision=vision)
    assert cached.kinds == {"text", *sizes}
    paths = cached.samples[0].visit(0).condition_paths
    assert {kind: tuple(read_tensor(paths[kind]).shape[:2]) for kind in sizes} == sizes


def test_5b_is_cached_with_its_own_vae_and_what_is_known(nodes, folder):
    dataset = loaded(nodes, folder, {"model": FIVE, "condition": "first frame"})
    assert all(side % 32 == 0 for each in dataset.samples for side in (each.bucket.width, each.bucket.height))
    cached, _ = encoded(nodes, dataset, frame_models.wan22_vae())
    assert cached.family == WAN22_5B and cached.kinds == {"text", "known"}
    clip = next(sample for sample in cached.samples if sample.bucket.frames == 5)
    batch = read_batch([clip.visit(0)], WAN22_5B.conditions)
    assert batch.latent_BCFHW.shape == (1, 48, 2, clip.bucket.height // 16, clip.bucket.width // 16)
    assert batch.conditions["known"].tolist() == [[1.0, 0.0]]


def test_the_vae_must_be_that_of_the_model(nodes, folder):
    with pytest.raises(UserError, match="load Wan2.2's .*or choose another model in Dataset Settings"):
        encoded(nodes, loaded(nodes, folder, {"model": FIVE}), tools.load_vae())
    with pytest.raises(UserError, match="load Wan2.1's .*or choose another model in Dataset Settings"):
        encoded(nodes, loaded(nodes, folder, {}), frame_models.wan22_vae())


@pytest.mark.parametrize("settings", [{}, {"model": FIVE, "condition": "first frame"}], ids=["none", "5b"])
def test_a_clip_vision_that_is_not_used_is_noted(nodes, folder, tmp_path, settings):
    vae = frame_models.wan22_vae() if settings else tools.load_vae()
    cached, text = encoded(nodes, loaded(nodes, folder, settings), vae, clip_vision=frame_models.clip_vision(tmp_path))
    assert "clip_vision" not in cached.kinds and "note      clip_vision is not used" in text


def test_what_was_saved_before_there_was_a_choice_is_text_to_video_as_it_was(nodes, folder):
    old = {"more_resolutions": "", "prepend_trigger": True, "caption_fallback": "trigger word", "caption_dropout": 0.0,
           "shuffle_tags": False, "masks": "folder", "alpha_color": "white"}
    digests = {loaded(nodes, folder, settings).digest for settings in (None, {}, old, {"condition": "none"})}
    assert len(digests) == 1
    inputs = {each.id: each for each in nodes["DatasetSettings"].GET_SCHEMA().inputs}
    assert all(inputs[name].optional for name in ("model", "condition", "condition_dropout"))


def test_what_a_model_does_not_take_is_told_before_anything_runs(nodes):
    check = nodes["DatasetSettings"].validate_inputs
    assert check(model=FIVE, condition="first frame", condition_dropout=0.1) is True
    assert check(model=FIVE, condition="first and last frame") == (
        'condition is "first and last frame"; Wan2.2 5B takes none or first frame.')
    assert check(model=FIVE, condition="control clip") == (
        'condition is "control clip"; Wan2.2 5B takes none or first frame.')
    assert check(condition_dropout=2.0) == "condition_dropout is 2.0; choose 0 to 1, for example 0.1."
