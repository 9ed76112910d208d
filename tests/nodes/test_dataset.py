"""Load Dataset, Join Datasets, Cache Latents and Prune Cache, and training on what they give."""

import asyncio
import json
import math

import pytest
import torch
from PIL import Image

from wantune.tests.support import clips, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded import cache
from wantune.trainer.encoded.batches import BucketSampler, read_batch
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.model.text_padding import pad
from wantune.trainer.settings.training import LoraConfig, TrainConfig
from wantune.trainer.training import objective

pytestmark = pytest.mark.usefixtures("comfy")

LOAD, SETTINGS, JOIN, CACHE, PRUNE = (
    f"WanTune_{name}" for name in ("LoadDataset", "DatasetSettings", "JoinDatasets", "CacheLatents", "PruneCache"))


@pytest.fixture
def nodes(comfy, tmp_path, monkeypatch) -> dict:
    """The nodes, with ComfyUI's folders in a folder of the test."""
    import folder_paths

    from wantune.nodes import WanTuneExtension

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(WanTuneExtension().get_node_list())}


@pytest.fixture
def folder(tmp_path):
    """Four real pictures and a clip; the left half of one picture is masked."""
    folder = tools.write_pictures(tmp_path / "data")
    clips.at_rate(folder / "clip.mp4", 24, 40)
    (folder / "masks").mkdir()
    mask = Image.new("L", (512, 512), 0)
    mask.paste(255, (0, 0, 256, 512))
    mask.save(folder / "masks" / "astronaut.png")
    return folder


def load(nodes, folder, settings=None, **changes):
    """(dataset, report, what the page gets)"""
    inputs = {"folder": str(folder), "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1, 17",
              "num_repeats": 2, "validation_items": 0, **changes}
    if settings:
        inputs["settings"] = nodes[SETTINGS].execute(**settings).result[0]
    output = nodes[LOAD].execute(**inputs)
    return *output.result, output.ui


def encoded(nodes, dataset) -> cache.CachedDataset:
    return nodes[CACHE].execute(dataset, tools.load_vae(), tools.load_clip()).result[0]


def test_captions_are_plain_text_unless_the_switch_says_otherwise(nodes, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "cat.png")
    (tmp_path / "data" / "cat.txt").write_text("a (cat:1.5)")
    dataset, clip = load(nodes, tmp_path / "data")[0], tools.load_clip()
    for is_on, prompt in (False, r"zwx, a \(cat:1.5\)"), (True, "zwx, a (cat:1.5)"):
        cached = nodes[CACHE].execute(dataset, tools.load_vae(), clip, prompt_syntax=is_on).result[0]
        text_LD = read_tensor(cached.samples[0].captions[0]["text"]).float()
        with torch.inference_mode():
            expected = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0][0]
        assert torch.equal(text_LD, expected[:len(text_LD)].float()) and not expected[len(text_LD):].any()


def train(dataset, settings, watch=None):
    from wantune.nodes.train import train

    return train(tools.load_dit(tools.WORLD / "dit.safetensors"), dataset, "test", settings, watch or tools.Watch())


def test_the_report_is_text_in_the_node_an_output_and_json_for_the_page(nodes, folder):
    settings = {"caption_dropout": 0.1, "more_resolutions": "96"}
    dataset, text, page = load(nodes, folder, settings, validation_items=1)
    assert "5 of 5 files are used" in text and "expected cache size" in text and "held out" in text
    assert page["text"][0].startswith("5 of 5 files are used")
    (found,) = json.loads(json.dumps(page["wantune_report"]))
    assert {each["file"] for each in found["files"]} == {
        "astronaut.png", "chelsea.png", "coffee.png", "rocket.png", "clip.mp4"}
    assert found["totals"]["files_held_out"] == 1 and len(dataset.held_out) == 2
    assert {clip.bucket.width for clip in dataset.samples} >= {64, 96} and dataset.samples[0].caption_dropout == 0.1
    assert [each["mask"] for each in found["files"] if each["file"] == "astronaut.png"] == ["masks/astronaut.png"]


def test_a_large_folder_is_shortened_in_the_node_alone(nodes, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(130):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "many" / f"{number}.png")
    _, text, page = load(nodes, tmp_path / "many")
    assert page["text"][0].count("used ") == 101 and "... and 30 more" in page["text"][0]
    assert text.count("used ") == 131 and len(page["wantune_report"][0]["files"]) == 130


def test_joined_datasets_keep_their_own_settings_and_are_trained_on(nodes, folder, tmp_path):
    (tmp_path / "other").mkdir()
    Image.effect_noise((200, 100), 60).convert("RGB").save(tmp_path / "other" / "noise.png")
    first = load(nodes, folder, validation_items=1)[0]
    second = load(nodes, tmp_path / "other", trigger_word="qqq", num_repeats=5, resolution=96)[0]
    joined, text = nodes[JOIN].execute(dataset_1=first, dataset_2=second, dataset_3=None).result
    assert "6 of 6 files are used" in text and joined.trigger_word == "zwx, qqq"
    assert {clip.repeats for clip in joined.samples} == {2, 5}
    assert {clip.captions for clip in joined.samples if clip.repeats == 5} == {("qqq",)}
    dataset = encoded(nodes, joined)
    assert len(dataset.samples) == 5 and len(dataset.held_out) == 1
    lora, losses, _ = train(dataset, TrainConfig(epochs=1, lora=LoraConfig(rank=4)))
    assert len(losses) == 4 * 2 + 5 and all(map(math.isfinite, losses))
    assert lora.metadata["wantune.trigger_word"] == "zwx, qqq"


def test_the_loss_of_a_step_is_the_masked_one(nodes, folder):
    """The first step against the loss by hand, from ComfyUI's own model and the mask's own pixels."""
    for path in folder.iterdir():
        if path.stem not in ("astronaut", "masks"):
            path.unlink()
    dataset = encoded(nodes, load(nodes, folder)[0])
    settings = TrainConfig(epochs=1, max_steps=1, lora=LoraConfig(rank=4))
    _, (loss,), _ = train(dataset, settings)

    import comfy.model_management

    generator = objective.generator(settings.seed, 0)
    latent = read_tensor(dataset.samples[0].latent_paths[0])[None]
    t_B = objective.sample_timesteps(settings.objective, 1, generator)
    noise = objective.sample_noise(latent, generator)
    text = read_batch([dataset.samples[0].visit(0)], dataset.family.conditions).conditions["text"]
    model = tools.load_dit(tools.WORLD / "dit.safetensors")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        x = objective.interpolate(latent, noise, t_B)
        velocity = model.model.diffusion_model(x, t_B * 1000, context=pad(text, 512), transformer_options={}).float()
    error = (velocity - (noise - latent)).square()
    assert loss == pytest.approx(error[..., :4].mean().item(), rel=1e-5), "the left half alone counts"
    assert loss != pytest.approx(error.mean().item(), rel=1e-4)


def test_pictures_with_and_without_mask_share_a_batch(nodes, folder):
    dataset = encoded(nodes, load(nodes, folder)[0])
    _, losses, _ = train(dataset, TrainConfig(epochs=2, batch_size=4, lora=LoraConfig(rank=4)))
    assert all(map(math.isfinite, losses))


def test_held_out_files_are_never_seen_in_training(nodes, folder):
    (folder / "again.png").write_bytes((folder / "coffee.png").read_bytes())
    for count in (1, 2, 3):
        dataset = encoded(nodes, load(nodes, folder, validation_items=count)[0])
        sampler = BucketSampler(dataset.samples, 2, seed=0)
        seen = {sample.latent_path for _ in range(3 * sampler.steps_per_epoch) for sample in sampler.next()}
        held_out = {path for clip in dataset.held_out for path in clip.latent_paths}
        assert held_out and not held_out & seen


def test_both_encoders_are_off_the_device_when_training_begins(nodes, folder):
    import comfy.model_management

    vae, clip = tools.load_vae(), tools.load_clip()
    dataset = nodes[CACHE].execute(load(nodes, folder)[0], vae, clip).result[0]

    def loaded() -> list:
        return [each.model.model for each in comfy.model_management.current_loaded_models if each.model is not None]

    seen = []
    assert any(model is clip.patcher.model for model in loaded())
    settings = TrainConfig(epochs=1, max_steps=1, lora=LoraConfig(rank=4))
    train(dataset, settings, tools.Watch(lambda _: seen.append(loaded())))
    assert seen and all(len(models) == 1 for models in seen), "the transformer alone"
    assert not any(model is vae.patcher.model or model is clip.patcher.model for models in seen for model in models)


def test_cache_latents_says_what_it_left_out_and_how_large_the_cache_is(nodes, folder):
    dataset = load(nodes, folder)[0]
    (folder / "coffee.png").unlink()
    output = nodes[CACHE].execute(dataset, tools.load_vae(), tools.load_clip())
    text = output.ui.as_dict()["text"][0]
    assert "4 samples are encoded" in text and "coffee.png is gone" in text and "files, " in text
    assert len(output.result[0].samples) == 4


def test_pruned_files_are_made_again_when_the_graph_runs_again(nodes, folder, tmp_path):
    node, before = nodes[CACHE], nodes[CACHE].fingerprint_inputs()
    dataset = load(nodes, folder)[0]
    first = encoded(nodes, dataset)
    assert node.fingerprint_inputs() == before, "filling alone changes nothing"
    report = nodes[PRUNE].execute(30.0, 50.0).result[0]
    assert report.startswith("deleted 0 files") and node.fingerprint_inputs() == before
    report = nodes[PRUNE].execute(30.0, 0.0).result[0]
    assert "the cache holds 0 files" in report and node.fingerprint_inputs() != before
    with pytest.raises(UserError, match="queue again"):
        train(first, TrainConfig(epochs=1, max_steps=1))
    again = encoded(nodes, dataset)
    priors = {prior for sample in dataset.samples for prior in sample.prior_captions}
    assert again.digest == first.digest
    assert Store(tmp_path / "output/wantune/cache").size().files == 5 + 5 + 1 + len(priors)
    assert math.isnan(nodes[PRUNE].fingerprint_inputs())


def test_a_cache_file_damaged_during_training_ends_the_run_with_a_sentence(nodes, folder):
    dataset = encoded(nodes, load(nodes, folder, num_repeats=20)[0])
    path = dataset.samples[0].latent_paths[0]

    def damage(event) -> None:
        if getattr(event, "step", 0) == 3:
            data = bytearray(path.read_bytes())
            data[-1] ^= 0xFF
            path.write_bytes(data)

    before = nodes[CACHE].fingerprint_inputs()
    with pytest.raises(UserError, match="its checksum is wrong.*queue again"):
        train(dataset, TrainConfig(epochs=3, lora=LoraConfig(rank=4)), tools.Watch(damage))
    assert nodes[CACHE].fingerprint_inputs() != before
    encoded(nodes, load(nodes, folder)[0])
    assert path.exists()


@pytest.mark.parametrize("after", [1, 3, 5])
def test_cancel_while_encoding_keeps_what_is_done(nodes, folder, tmp_path, monkeypatch, after):
    import comfy.model_management

    from wantune.nodes.backend import encoders

    dataset = load(nodes, folder)[0]
    encode, calls = encoders.WanCodec.encode, []

    def interrupted(codec, pixels):
        calls.append(len(pixels))
        latent = encode(codec, pixels)
        if len(calls) == after:
            comfy.model_management.interrupt_current_processing()
        return latent

    monkeypatch.setattr(encoders.WanCodec, "encode", interrupted)
    vae = tools.load_vae()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        nodes[CACHE].execute(dataset, vae, tools.load_clip())
    assert len(calls) == after
    assert len(encoded(nodes, dataset).samples) == 5 and len(calls) == 5, "nothing is encoded twice"
    assert not list(tmp_path.rglob("*.tmp"))


def test_cancel_while_scanning_ends_the_scan(nodes, tmp_path):
    import comfy.model_management

    (tmp_path / "many").mkdir()
    for number in range(40):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "many" / f"{number}.png")
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load(nodes, tmp_path / "many")
    assert len(load(nodes, tmp_path / "many")[0].samples) == 40
