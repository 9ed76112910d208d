"""Compare Checkpoints: each cell is KSampler with Apply LoRA bit for bit, once, in a grid that says what is what."""

import json

import numpy as np
import pytest
import torch

from wantune.tests.support import carried, frame_models, tools, trained
from wantune.tests.support.videos import read_back
from wantune.trainer.base.errors import UserError
from wantune.trainer.runs import checkpoints as run_lora

pytestmark = pytest.mark.usefixtures("comfy")

SIZE = {"width": 64, "height": 64, "frames": 5}
SAMPLER = {"seed": 7, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    """One run with a best checkpoint."""
    made = trained.world(tmp_path_factory.mktemp("world"))
    patch = trained.output_folder(made.output)
    made.train("run", evaluate_steps=2)
    yield made
    patch.undo()


def compare(world, prompts=("zwx a red digit",), **inputs):
    from wantune.nodes.compare_checkpoints import CompareCheckpoints

    extra = {f"positive_{number}": world.conditioning(text) for number, text in enumerate(prompts[1:], 2)}
    chosen = {"checkpoints": "all", "strengths": "1.0", "include_base": True, **SIZE, **SAMPLER, **inputs}
    with torch.inference_mode():
        return CompareCheckpoints.execute(
            model=world.model, run=world.runs["run"][1].name, vae=world.vae,
            **{"positive": world.conditioning(prompts[0]), "negative": world.conditioning(""), **extra, **chosen})


def data_of(output) -> dict:
    (data,) = json.loads(json.dumps(output.ui))["wantune_compare"]
    return data


def frames(world, data) -> np.ndarray:
    path = world.output / data["video"]["subfolder"] / data["video"]["filename"]
    return read_back(path)[0]


@pytest.fixture
def sampled(monkeypatch):
    """What is sampled, in order: (cell, latent)."""
    from wantune.nodes import compare_checkpoints

    calls, original = [], compare_checkpoints._latents

    def latents(*arguments):
        found = original(*arguments)
        calls.extend((cell, latent.clone()) for cell, latent in found.items())
        return found

    monkeypatch.setattr(compare_checkpoints, "_latents", latents)
    return calls


def test_each_cell_is_ksampler_with_apply_lora_bit_for_bit(world, sampled):
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    import nodes as comfy_nodes
    from wantune.nodes.lora import ApplyLoRA

    (model,) = ModelSamplingSD3().patch(world.model, 5.0)
    texts = ("zwx a red digit", "another prompt")
    sampler = {**SAMPLER, "sampler_name": "uni_pc"}
    original, world.model = world.model, model
    try:
        compare(world, texts, checkpoints="2, newest", strengths="0.5, 1", **sampler)
    finally:
        world.model = original
    assert len(sampled) == 2 * (1 + 2 * 2) and len({cell for cell, _ in sampled}) == len(sampled), "each once"
    folder = world.runs["run"][1]
    different = set()
    with torch.inference_mode():
        latent = EmptyHunyuanLatentVideo.execute(64, 64, 5).result[0]
        for cell, found in sampled:
            lora = cell.step and run_lora.load(folder, cell.step)
            applied = ApplyLoRA.execute(model, cell.strength, lora).result[0] if lora else model
            (expected,) = comfy_nodes.KSampler().sample(
                applied, sampler["seed"], sampler["steps"], sampler["cfg"], sampler["sampler_name"],
                sampler["scheduler"], world.conditioning(texts[cell.prompt]), world.conditioning(""), latent)
            assert torch.equal(found, expected["samples"]), cell
            different.add(found.numpy().tobytes())
    assert len(different) == len(sampled), "and no two are the same"


def test_a_cell_of_a_pair_is_two_ksamplers_advanced_with_apply_lora_on_each(world, sampled):
    """The low-noise expert gets its own run's checkpoint of the same step, or the last one before; with a latent."""
    import nodes as comfy_nodes
    from wantune.nodes.lora import ApplyLoRA

    if "low" not in world.runs:
        world.train("low", learning_rate=1e-2, max_steps=4)
    high, low = carried.shifted(world.model, 8.0), carried.shifted(
        tools.load_dit(tools.WORLD / "dit.safetensors"), 3.0)
    latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))}
    sampler = {**SAMPLER, "steps": 4, "sampler_name": "dpmpp_2m", "scheduler": "beta"}
    original, world.model = world.model, high
    try:
        data = data_of(compare(world, checkpoints="2, 6", model_low=low, run_low=world.runs["low"][1].name,
                               switch_at_step=1, latent=latent, **sampler))
    finally:
        world.model = original
    assert [label.replace(" (best)", "") for label in data["labels"]] == [
        "base", "step 2, low step 2, strength 1", "step 6, low step 4, strength 1"]
    told = (sampler["seed"], sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"],
            world.conditioning("zwx a red digit"), world.conditioning(""))
    with torch.inference_mode():
        for (_, found), steps in zip(sampled, (None, (2, 2), (6, 4)), strict=True):
            models = high, low
            if steps:
                loras = [run_lora.load(world.runs[name][1], step)
                         for name, step in zip(("run", "low"), steps, strict=True)]
                models = [ApplyLoRA.execute(model, 1.0, lora).result[0]
                          for model, lora in zip(models, loras, strict=True)]
            advanced = comfy_nodes.KSamplerAdvanced()
            (half,) = advanced.sample(models[0], "enable", *told, latent, 0, 1, "enable")
            (expected,) = advanced.sample(models[1], "disable", *told, half, 1, 10000, "disable")
            assert torch.equal(found, expected["samples"])
    assert not torch.equal(sampled[0][1], sampled[1][1])


@pytest.mark.parametrize(("inputs", "sentence"), [
    ({"switch_at_step": 1}, "switch_at_step is 1, but no model_low is connected"),
    ({"run_low": "low"}, "run_low is given, but no model_low to put its LoRA on"),
    ({"latent": {"samples": torch.zeros(1, 16, 3, 8, 8)}}, "The latent is one of 64 x 64 with 9 frames, but"),
])
def test_what_does_not_suit_each_other_is_refused_before_anything_is_sampled(world, sampled, inputs, sentence):
    with pytest.raises(UserError, match=sentence):
        compare(world, **inputs)
    assert sampled == []


def test_the_grid_shows_each_clip_in_its_place(world, sampled):
    output = compare(world, checkpoints="2, 6")
    data, video = data_of(output), frames(world, data_of(output))
    assert (data["fps"], data["frames"], data["height"], data["width"]) == (16, 5, *video.shape[1:3])
    best = json.loads((world.runs["run"][1] / "best.json").read_text())["step"]
    names = [f"step {step}{' (best)' * (step == best)}, strength 1" for step in (2, 6)]
    assert data["labels"] == ["base", *names] and len(video) == 5
    assert video.shape[1:] == (video.shape[1], 3 * 256, 3)
    bar = (video.shape[1] - 256) // 2
    for place, (_, latent) in enumerate(sampled):
        with torch.inference_mode():
            expected = world.vae.decode(latent).reshape(5, 64, 64, 3).numpy().repeat(4, 1).repeat(4, 2) * 255
        column = video[:, :, place * 256 : place * 256 + 256]
        found = column[:, bar : bar + 256].astype(float)
        errors = [np.abs(found - np.roll(expected, shift, axis=0)).mean() for shift in (0, 1)]
        assert errors[0] < 4 and errors[0] < errors[1], "in its place, at its time"
        assert column[0, :bar].std() > 5, "under its label"
        assert (column[0, bar + 256 :].std() > 5) == (place > 0), "and over its motion beside the base's"
    strip = output.result[1]
    assert strip.dtype == torch.float32 and strip.shape[::3] == (1, 3) and 0 <= strip.min() and strip.max() <= 1
    assert strip.shape[2] == 5 * 256 and strip.shape[1] == 3 * (256 + strip.shape[1] // 3 - 256)
    saved = world.output / "wantune" / data["strip"]["filename"]
    assert saved.is_file() and saved.suffix == ".jpg"
    shown = {"filename": data["video"]["filename"], "subfolder": "wantune", "type": "output"}
    assert json.loads(json.dumps(output.ui))["images"] == [shown] == [data["video"]]
    assert output.result[0].get_components().images.shape[0] == 5


def test_a_row_for_each_prompt_and_strength_with_the_base_in_each(world, sampled):
    data = data_of(compare(world, ("a", "b", "c"), checkpoints="2", strengths="0, 1"))
    assert data["labels"] == ["base", "step 2, strength 0", "base", "step 2, strength 1"] * 3 or "(best)" in str(data)
    assert len(sampled) == 3 * 3
    by_cell = {(cell.prompt, cell.step, cell.strength): latent for cell, latent in sampled}
    assert torch.equal(by_cell[0, None, 1.0], by_cell[0, 2, 0.0]), "at strength 0 it is the base model"
    without = data_of(compare(world, checkpoints="2", include_base=False))
    assert len(without["labels"]) == 1


def test_the_model_is_as_it_was(world):
    snapshot = tools.Snapshot(world.model)
    compare(world)
    snapshot.assert_untouched()
    assert not world.model.patches and not world.model.attachments


def test_cancel_ends_it_in_the_middle_of_a_clip_and_leaves_no_file(world, monkeypatch):
    import comfy.model_management

    from wantune.nodes.page.clip_progress import ClipProgress

    for place in ("advance", "begin"):
        before, snapshot, count = sorted((world.output / "wantune").iterdir()), tools.Snapshot(world.model), []
        original = getattr(ClipProgress, place)

        def interrupted(self, *args, original=original, count=count):
            count.append(1)
            if len(count) == 3:
                comfy.model_management.interrupt_current_processing()
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(ClipProgress, place, interrupted)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                compare(world)
        assert len(count) == 3 or place == "advance"
        snapshot.assert_untouched()
        assert sorted((world.output / "wantune").iterdir()) == before


def test_the_bar_counts_every_step_and_clip(world, monkeypatch):
    import comfy.utils

    seen = []

    class Bar:
        def __init__(self, total, node_id=None):
            seen.append(total)

        def update_absolute(self, value):
            seen.append(value)

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    compare(world, checkpoints="2, 4")
    assert seen == [3 * (2 + 1), *range(1, 10)]


def test_too_many_clips_are_counted_before_anything_is_sampled(world, sampled):
    with pytest.raises(UserError, match="That would be 63 clips .3 prompts, 3 checkpoints, 7 strengths., and 60"):
        compare(world, ("a", "b", "c"), strengths="1, 2, 3, 4, 5, 6, 7", include_base=False)
    assert sampled == []


def test_a_vae_of_another_model_is_told_before_anything_is_sampled(world, sampled, monkeypatch):
    monkeypatch.setattr(world.vae, "latent_channels", 48)
    with pytest.raises(UserError, match="The VAE has latents of 48 channels, the model of 16; connect the VAE that"):
        compare(world)
    assert sampled == []


@pytest.mark.parametrize(("inputs", "sentence"), [
    ({"run": "nowhere"}, "There is no run 'nowhere'"), ({"checkpoints": "5"}, "the checkpoints of the steps 2, 4, 6"),
    ({"checkpoints": "some"}, "checkpoints has 'some'"), ({"strengths": "a"}, "strengths is 'a'"),
    ({"strengths": " , "}, "strengths is ' , '"), ({"strengths": "nan"}, "strengths is 'nan'"),
    ({"strengths": "21"}, "strengths is '21'"), ({"frames": 6}, "frames is 6; Wan takes 4n+1"),
    ({"frames": 1029}, "from 1 to 1025"),
])
def test_mistakes_are_answered_before_anything_runs(world, inputs, sentence):
    from wantune.nodes.compare_checkpoints import CompareCheckpoints

    right = {"run": world.runs["run"][1].name, "checkpoints": "all", "strengths": "1.0", "frames": 17}
    assert CompareCheckpoints.validate_inputs(**right) is True
    assert CompareCheckpoints.validate_inputs(**dict.fromkeys(right)) is True, "linked: not known yet"
    best = json.loads((world.runs["run"][1] / "best.json").read_text())["step"]
    answer = CompareCheckpoints.validate_inputs(**{**right, **inputs})
    assert sentence in answer.replace(f"{best} (best)", str(best))


def test_samplers_and_defaults_are_ksamplers_and_the_examples(comfy):
    import nodes as comfy_nodes
    from wantune.nodes.compare_checkpoints import CompareCheckpoints

    ours = {each.id: each for each in CompareCheckpoints.GET_SCHEMA().inputs}
    theirs = comfy_nodes.KSampler.INPUT_TYPES()["required"]
    for name, default in (("sampler_name", "uni_pc"), ("scheduler", "simple")):
        assert list(ours[name].options) == list(theirs[name][0]) and ours[name].default == default


def test_nan_names_the_clip(world, monkeypatch):
    monkeypatch.setattr(world.vae, "decode", lambda latent: torch.full((1, 5, 64, 64, 3), float("nan")))
    with pytest.raises(UserError, match="The clip of base holds values that are not numbers"):
        compare(world)


def test_below_each_clip_stands_its_motion_and_its_likeness_beside_the_base(world, monkeypatch, tmp_path):
    from wantune.nodes import compare_checkpoints
    from wantune.nodes.media.likeness import Likeness

    written, original, decoded, decode = [], compare_checkpoints._written, [], world.vae.decode
    monkeypatch.setattr(compare_checkpoints, "_written", lambda hidden, groups, fps: written.extend(
        panel for group in groups for row in group.rows for panel in row) or original(hidden, groups, fps))
    monkeypatch.setattr(world.vae, "decode", lambda latent: decoded.append(decode(latent)) or decoded[-1])
    seen = {"cache": world.cached, "clip_vision": frame_models.clip_vision(tmp_path, hidden_size=64)}
    heights = [frames(world, data_of(compare(world, checkpoints="2, 6", **each))).shape[1] for each in (
        seen, {"include_base": False})]
    clips = [(images[0] * 255).round().byte().numpy() for images in decoded if images.shape[1] == SIZE["frames"]]
    base, *tuned = likenesses = Likeness(seen["clip_vision"], world.vae, world.cached).of(clips[:3])[0]
    motions = [np.abs(np.diff(clip.astype(float), axis=0)).mean() for clip in clips[:3]]
    assert [panel.line for panel in written] == [f"likeness {base:.2f}", *(
        f"likeness {likeness:.2f} (base {base:.2f}), motion {motion / motions[0]:.2f} of base"
        for likeness, motion in zip(tuned, motions[1:], strict=True)), "", ""]
    assert len(set(likenesses)) == 3 and heights[0] > heights[1], "a bar below, where anything is said"


@pytest.mark.parametrize("given", [{"cache": "a cache"}, {"clip_vision": "a file"}])
def test_likeness_needs_the_pictures_and_clip_vision(world, given):
    (name,) = given
    with pytest.raises(UserError, match=f"{name} is connected, but not (cache|clip_vision), and likeness needs both"):
        compare(world, **given)
