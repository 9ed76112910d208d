"""A MODEL with a Bypass LoRA is trained as with the LoRA in its weights; however that ends, all samples as before."""

import pytest
import torch
from safetensors.torch import save_file

from wantune.tests.support import tools
from wantune.tests.support import trained as trained_runs
from wantune.tests.support.adapted import AdaptedModel, random_batch
from wantune.tests.support.carried import (
    CHANGES,
    NETWORK,
    Sampled,
    assert_close,
    assert_equal,
    bypass,
    lora_folder,
    merged,
    trained,
)
from wantune.trainer.base.errors import UserError

pytestmark = pytest.mark.usefixtures("comfy")


class Failure(BaseException):
    """As ComfyUI's interrupt is in newer versions."""


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture
def plain(comfy, dit_file):
    return tools.load_dit(dit_file)


@pytest.fixture(scope="module")
def loras(comfy, tmp_path_factory):
    """first.safetensors and second.safetensors of `lora_folder` in ComfyUI's lists."""
    folder = tmp_path_factory.mktemp("loras")
    patch = lora_folder(folder)
    yield folder
    patch.undo()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.001])
def test_on_a_bypass_lora_is_trained_as_on_the_merged_one(plain, loras, strength, checkpointing):
    by_injection, in_weights = bypass(plain, strength=strength), merged(plain, strength=strength)
    sampled = Sampled(plain, by_injection, in_weights)
    expected = trained(in_weights, checkpointing)
    assert_close(trained(by_injection, checkpointing), expected)
    assert not torch.equal(trained(plain)[0], expected[0])
    sampled.assert_again()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_bypass_lora_around_layers_that_are_cast(dit_file, loras, dtype):
    plain = tools.load_dit(dit_file, dtype=dtype)
    by_injection = bypass(plain)
    sampled = Sampled(by_injection, plain)
    found = trained(by_injection)
    # fp32 weights that hold the same values
    exact = tools.load_dit(dit_file, dtype=torch.float32)
    with torch.inference_mode():
        exact.model.diffusion_model.load_state_dict(
            {key: value.float() for key, value in plain.model.diffusion_model.state_dict().items()}, strict=False)
    assert_close(found, trained(bypass(exact)), 2e-2)
    sampled.assert_again()


@pytest.mark.parametrize("end", [None, UserError, Failure])
@pytest.mark.parametrize("again", [1, 2])
def test_however_training_on_a_bypass_lora_ends_all_sample_as_before(plain, loras, end, again):
    by_injection = bypass(plain)
    sampled = Sampled(by_injection, plain)

    def stop():
        if end is not None:
            raise end("in the middle")

    for _ in range(again):
        if end is None:
            trained(by_injection, True)
        else:
            with pytest.raises(end):
                trained(by_injection, True, stop)
    sampled.assert_again()
    assert torch.equal(tools.sample(bypass(plain)), sampled.videos[0])


def test_sampling_in_the_middle_of_training_on_a_bypass_lora(plain, loras):
    by_injection = bypass(plain)
    sampled = Sampled(by_injection, plain)
    adapted = AdaptedModel(by_injection)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    with adapted.attached():
        before = adapted.loss_B(batch).detach()
        sampled.assert_again()
        adapted.denoiser.reload()
        assert torch.equal(adapted.loss_B(batch).detach(), before)
    sampled.assert_again()


def test_runs_with_and_without_a_bypass_lora_are_two(comfy, loras, tmp_path):
    """Through the node, one after the other, and a second time, when both are found again."""
    world = trained_runs.world(tmp_path)
    size = world.model.model.diffusion_model.dim
    state = {f"{NETWORK}.blocks.0.self_attn.q.lora_{kind}.weight": torch.ones(shape) * 0.01
             for kind, shape in {"up": (size, 2), "down": (2, size)}.items()}
    save_file(state, loras / "world.safetensors")
    plain, by_injection = world.model, bypass(world.model, "world")
    sampled = Sampled(plain, by_injection)
    patch = trained_runs.output_folder(world.output)
    for name in ("one", "two"):
        for world.model, kind in (plain, "plain"), (by_injection, "bypass"):
            with torch.inference_mode():
                world.train(f"{kind} {name}", max_steps=2)
            sampled.assert_again()
    patch.undo()
    folders = {name: folder for name, (_, folder) in world.runs.items()}
    assert folders["plain one"] == folders["plain two"] != folders["bypass one"] == folders["bypass two"]
    key = f"{NETWORK}.blocks.0.self_attn.v.lora_B.weight"
    assert not torch.equal(world.runs["plain two"][0][key], world.runs["bypass two"][0][key])


def test_a_clone_that_takes_the_bypass_lora_with_it_does_not_take_the_adapter(plain, loras):
    """ComfyUI's clone copies the flag that it is injected, so that its end takes out what another one put in."""
    by_injection = bypass(plain)
    tools.sample(by_injection)
    stale = by_injection.clone()
    assert stale.is_injected
    adapted = AdaptedModel(by_injection)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    with adapted.attached():
        before = adapted.loss_B(batch)
        gradients = adapted.gradients(before)
        del stale
        assert_equal((adapted.loss_B(batch), adapted.gradients(adapted.loss_B(batch))), (before, gradients))


@pytest.mark.parametrize("place", range(len(CHANGES) + 1))
def test_a_bypass_lora_at_any_place_in_the_chain(plain, loras, place):
    model, without = plain, merged(merged(plain), "second")
    for number, change in enumerate([*CHANGES.values(), None]):
        if number == place:
            model = bypass(model, "second")
        model = change(model) if change else model
    sampled = Sampled(model, plain)
    assert_close(trained(model), trained(without))
    sampled.assert_again()
