"""What other nodes and packs put on a MODEL: trained on as it samples, or without it and said so, or refused by name.

However training ends, the model then samples as before, alone and with all that.
"""

import itertools

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.carried import (
    CHANGES,
    NETWORK,
    assert_equal,
    bypass,
    compiled,
    compiled_in_place,
    guided,
    id_of,
    lora_folder,
    merged,
    shifted,
    trained,
    with_options,
    wrapped,
)
from wantune.trainer.base.errors import UserError

pytestmark = pytest.mark.usefixtures("comfy")

PLAIN_ID = "dba644492ff79320a6a8736ac144f58c783809dab4666f7e85da92bd7d9a8e3e"
"""Of the small world's transformer. That of the world before it is what it was when injections were not yet part of
a MODEL's name (47ef3d5d...)."""


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


ORDERS = list(itertools.permutations(["weights", "object patch", "wrapper"]))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_whatever_the_order_of_what_others_put_on_a_model(plain, loras, order):
    model = plain
    for name in order:
        model = CHANGES[name](model)
    in_weights = merged(plain)
    tools.sample(model)
    before = tools.sample(model), tools.sample(plain)
    found = trained(model)  # while the patched clone is the one that is loaded, or the plain one
    assert id_of(model) == id_of(in_weights) != id_of(plain)
    assert_equal(found, trained(in_weights))
    assert torch.equal(tools.sample(plain), before[1]) and torch.equal(tools.sample(model), before[0])


@pytest.mark.parametrize("compile_it", [pytest.param(compiled, marks=pytest.mark.long), compiled_in_place])
@pytest.mark.parametrize("order", [(0, 1), pytest.param((1, 0), marks=pytest.mark.long)])
def test_a_compiled_model_is_trained_as_it_is_without(plain, loras, compile_it, order):
    model = plain
    for number in order:
        model = (compile_it, merged)[number](model)
    in_weights = merged(plain)
    keys = list(plain.model.state_dict())
    expected_id, expected = id_of(in_weights), trained(in_weights)
    before = tools.sample(model)  # compiled modules are in the shared network from now on
    assert id_of(model) == expected_id == id_of(in_weights)
    assert_equal(trained(model), expected)
    assert torch.equal(tools.sample(model), before)
    tools.sample(plain)
    assert list(plain.model.state_dict()) == keys


def test_what_training_goes_without_is_said(plain, caplog):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    assert ComfyDenoiser(plain).notes == () == ComfyDenoiser(shifted(plain)).notes
    (note,) = ComfyDenoiser(with_options(wrapped(guided(compiled(plain))))).notes
    assert note.startswith("Trained without what this MODEL carries for sampling: ")
    for part in ("blocks.0.cross_attn.forward and 1 more (guided.<locals>.guided_forward of", "torch.compile",
                 "easycache", "model_function_wrapper (with_options.<locals>.tea_cache of", "optimized_attention"):
        assert part in note, part
    trained(guided(plain))
    assert "Trained without" in caplog.text


def test_models_that_compute_different_things_have_different_names(plain, loras):
    models = [plain, merged(plain), merged(plain, strength=0.5), merged(plain, "second"),
              bypass(plain), bypass(plain, strength=0.5), bypass(plain, "second"), merged(bypass(plain)),
              bypass(merged(plain))]
    ids = [id_of(model) for model in models]
    assert len({*ids}) == len(ids) - 1 and ids[-1] == ids[-2], "the last two compute the same"
    for model in models:
        tools.sample(model)
        assert [id_of(each) for each in models] == ids, "whichever is loaded"


def test_patches_that_were_taken_for_one_another_have_different_names(plain):
    key = f"{NETWORK}.blocks.0.self_attn.q.weight"
    patches = {"one": ("diff", (torch.ones(128, 128),)), "two": ("diff", (torch.zeros(128, 128),))}

    def patched(patch, *strengths):
        model = plain.clone()
        model.add_patches({key: patch}, *strengths)
        return model

    models = [plain, *(patched(patch) for patch in patches.values()), patched(patches["one"], 1.0, 0.5)]
    assert len({id_of(model) for model in models}) == len(models)


def test_the_names_of_plain_models_are_as_they_were(comfy):
    assert id_of(tools.load_dit(tools.WORLD / "dit.safetensors")) == PLAIN_ID


def attention_of_another_pack(module, x, *args, **kwargs):
    return type(module).forward(module, x, *args, **kwargs)


@pytest.mark.parametrize("place", ["blocks.1.self_attn", "blocks.0", "blocks.0.norm3", ""])
def test_a_forward_that_is_no_linears_is_refused_by_name(plain, place):
    module = plain.model.diffusion_model.get_submodule(place)
    module.__dict__["forward"] = theirs = attention_of_another_pack.__get__(module)
    try:
        with pytest.raises(UserError, match="is computed by attention_of_another_pack of .*test_carried"):
            trained(plain)
    finally:
        assert module.__dict__.pop("forward") is theirs
    trained(plain)


def test_an_injection_of_a_forward_that_is_no_linears_is_refused_by_name(plain):
    from comfy.patcher_extension import PatcherInjection

    block = plain.model.diffusion_model.blocks[1]
    model = plain.clone()

    def inject(_patcher):
        block.forward = attention_of_another_pack.__get__(block)

    model.set_injections("theirs", [PatcherInjection(inject, lambda _patcher: block.__dict__.pop("forward"))])
    sampled = tools.sample(plain), tools.sample(model)
    with pytest.raises(UserError, match="blocks.1 .*attention_of_another_pack"):
        trained(model)
    assert torch.equal(tools.sample(plain), sampled[0]) and torch.equal(tools.sample(model), sampled[1])
    assert [*model.injections] == ["theirs"]


def test_a_method_of_comfyui_that_another_pack_replaced_is_refused_by_name(plain, monkeypatch):
    monkeypatch.setattr(type(plain.model.diffusion_model.blocks[0]), "forward", attention_of_another_pack)
    with pytest.raises(UserError, match="WanAttentionBlock.forward is attention_of_another_pack of"):
        trained(plain)


def test_what_transformers_adds_to_all_modules_is_in_nobodys_way(plain, monkeypatch):
    """It does so when a pack makes one of its models, such as one that writes captions."""
    def smart_apply(module, fn, is_custom_code):
        raise AssertionError

    smart_apply.__module__ = "transformers.modeling_utils"
    monkeypatch.setattr(torch.nn.Module, "smart_apply", smart_apply, raising=False)
    trained(plain)


def test_a_hook_of_another_pack_is_refused_by_name(plain):
    def their_hook(module, inputs, output):
        return output * 2

    handle = plain.model.diffusion_model.blocks[0].ffn.register_forward_hook(their_hook)
    with pytest.raises(UserError, match="blocks.0.ffn .*their_hook"):
        trained(plain)
    handle.remove()


def test_a_forward_without_a_gradient_around_a_linear_is_refused_by_name(plain):
    from comfy.patcher_extension import PatcherInjection

    layer = plain.model.diffusion_model.blocks[1].self_attn.k
    model = plain.clone()

    def inject(_patcher):
        before = layer.forward
        layer.forward = lambda x: before(x.detach())

    model.set_injections("theirs", [PatcherInjection(inject, lambda _patcher: layer.__dict__.pop("forward"))])
    with pytest.raises(UserError, match="inject.<locals>.<lambda> of .* gives no right gradient"):
        trained(model)
    assert "forward" not in layer.__dict__
