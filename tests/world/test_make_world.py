"""The script that makes the small world: what it draws and says, and a toy run of its training in legs."""

import argparse
import dataclasses

import filelock
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wantune.tests.support.tools import WORLD, load_dit
from wantune.tests.world import captions, dit, glyphs, make_world, random_models, scenes, training
from wantune.tests.world.text import TextEncoder

from .test_world import encode_text

pytestmark = pytest.mark.usefixtures("comfy")

PROMPTS = ["a red GF Carty Chan digit moving right", "three digit in blue", ""]


@pytest.fixture(scope="module")
def shapes():
    return glyphs.glyphs()


@pytest.fixture
def plan(tmp_path):
    start_from = random_models.make_dit(tmp_path / "start.safetensors", layers=1)
    return training.Plan(
        start_from=start_from, vae=WORLD / "vae.safetensors", text_encoder=WORLD / "umt5.safetensors",
        clips=2, stills=4, shards=2, shard_size=4, steps_per_shard=2, log_every=1, evaluate_every=0,
        last_shares=(("digit", 1.0),),
    )


def trained(plan, work, *legs):
    for last_step, decay in legs:
        leg = training.Leg(work=work, seconds=600, last_step=last_step, decay=decay, processes=1)
        training.train(0, plan, leg, "")
    return torch.load(training.checkpoints(work)[-1])


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    else:
        assert one == other


def test_a_run_in_legs_is_the_run_without_a_break_and_its_file_loads(plan, tmp_path):
    whole = trained(plan, tmp_path / "whole", (3, 0))
    broken = trained(plan, tmp_path / "broken", (1, 0), (3, 0))
    assert_same(whole, broken)
    start = load_file(plan.start_from)
    assert not any(torch.equal(start[name], tensor) for name, tensor in whole["model"].items() if "weight" in name)
    path = make_world.export(training.Run(plan, tmp_path / "whole"), tmp_path / "export")
    assert path.stat().st_size < 1.1 * plan.start_from.stat().st_size / 2
    loaded = load_dit(path).model
    assert type(loaded.model_config).__name__ == "WAN21_T2V"
    for name, tensor in loaded.diffusion_model.state_dict().items():
        assert torch.equal(tensor.float(), whole["average"][name].half().float()), name


def test_the_final_fall_of_the_learning_rate_ends_the_run(plan, tmp_path):
    trained(plan, tmp_path, (1, 0))
    state = trained(plan, tmp_path, (10, 2), (10, 0))
    assert state["step"] == 3
    assert training.Run(plan, tmp_path).learning_rate() == 0


def test_two_checkpoints_are_kept(plan, tmp_path):
    trained(plan, tmp_path, (1, 0), (2, 0), (3, 0))
    assert [path.name for path in training.checkpoints(tmp_path)] == ["checkpoint-0000002.pt", "checkpoint-0000003.pt"]


def test_a_process_ends_with_the_command_that_started_it(plan, tmp_path, monkeypatch):
    parents = iter([1000, 1000, 1])
    monkeypatch.setattr(training.os, "getppid", lambda: next(parents))
    with pytest.raises(SystemExit, match="was killed"):
        trained(plan, tmp_path, (10, 0))


def test_two_runs_do_not_share_a_folder(tmp_path):
    options = argparse.Namespace(work=tmp_path, hours=1, decay=0, processes=1)
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="Another process trains"):
        make_world.train(options)


def test_what_was_never_trained_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make_world.run_of(tmp_path)


def test_training_lowers_the_loss(plan, tmp_path):
    plan = dataclasses.replace(plan, clips=8, stills=8, warm_up=1, shards=1)
    batches = training.Batches(plan, tmp_path, 0, 1)
    batch = batches(0)
    before = training.Run(plan, tmp_path).model
    trained(plan, tmp_path, (12, 0))
    after = training.Run(plan, tmp_path).model
    with torch.no_grad():
        assert training.loss_of(after, batch) < 0.9 * training.loss_of(before, batch)


def test_our_text_encoder_is_comfyuis():
    text_BLD, length_B = TextEncoder(WORLD / "umt5.safetensors")(PROMPTS)
    for prompt, rows, length in zip(PROMPTS, text_BLD, length_B, strict=True):
        expected = encode_text(WORLD / "umt5.safetensors", prompt)[0].float().cpu()
        assert torch.allclose(rows[:length], expected[:length], atol=2e-3), prompt
        assert expected[length:].abs().max() == rows[length:].abs().sum() == 0


@pytest.mark.parametrize("frames", [1, 3])
def test_our_transformer_is_comfyuis(frames):
    import comfy.model_management

    stock = load_dit(WORLD / "dit.safetensors")
    comfy.model_management.load_models_gpu([stock])
    tensors = load_file(WORLD / "dit.safetensors")
    ours = dit.Transformer(**dit.size_of(tensors))
    ours.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    text_BLD, length_B = TextEncoder(WORLD / "umt5.safetensors")(PROMPTS)
    whole_BLD = torch.zeros(len(PROMPTS), 512, 4096)
    whole_BLD[:, : text_BLD.shape[1]] = text_BLD
    latent = torch.randn(len(PROMPTS), 16, frames, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma_B = torch.tensor([0.1, 0.5, 1.0])
    device = stock.load_device
    with torch.inference_mode():
        expected = stock.model.diffusion_model(
            latent.to(device), (1000 * sigma_B).to(device), whole_BLD.to(device), transformer_options={}
        ).float().cpu()
        assert (ours(latent, sigma_B, text_BLD, length_B) - expected).abs().max() < 0.02 * expected.std()


def test_the_base_never_sees_what_is_held_out(shapes):
    rng = np.random.default_rng(0)
    drawn = [scenes.random_scene(shapes, moves, rng) for moves in (False, True) for _ in range(400)]
    assert {scene.name for scene in drawn} == {"", *glyphs.BASE}
    assert not {"nine", "H", "K"} & set(glyphs.BASE)
    for scene in drawn:
        if scene.kind == "invented":
            assert scenes.likeness_to_nine(scene.glyph_88, shapes) < scenes.TOO_LIKE_A_NINE
        told = captions.caption(scene, rng)
        assert "nine" not in told and "letter H" not in told
        assert not told or scene.color in told and scene.direction in told


def test_every_way_lies_on_the_canvas_and_goes_where_it_says():
    assert scenes.way("") == (scenes.MIDDLE,)
    for direction, (right, down) in scenes.DIRECTIONS.items():
        way = scenes.way(direction)
        assert len(way) == scenes.FRAMES and way[0] == scenes.MIDDLE
        assert all(0 <= edge <= scenes.CANVAS - scenes.SHAPE for place in way for edge in place)
        assert (way[-1][0] - way[0][0], way[-1][1] - way[0][1]) == (16 * right, 16 * down)


def test_a_scene_is_drawn_in_its_color_at_its_place(shapes):
    scene = scenes.Scene("digit", "zero", "red", "", shapes["zero"][0], ((16, 32),))
    still = scenes.draw(scene)[0]
    assert still.shape == (64, 64, 3)
    painted = np.argwhere((still != scenes.BACKGROUND).any(-1))
    assert painted.min(0).tolist() >= [32, 16] and painted.max(0).tolist() <= [63, 47]
    assert (still == scenes.COLORS["red"]).all(-1).any()


def test_invented_words_are_none_that_the_world_knows():
    rng = np.random.default_rng(0)
    words = {word for _ in range(300) for word in captions.invented_words(rng).split()}
    assert len(words) > 300
    assert not captions.KNOWN & {word.lower() for word in words}
