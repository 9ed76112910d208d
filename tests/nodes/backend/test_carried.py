"""What other nodes and packs put on a MODEL: trained on as it samples, or without it and said so, or refused by name.

However training ends, the model then samples as before, alone and with all that.
"""

import itertools

import pytest
import torch
from safetensors.torch import save_file

from wantune.tests.support import tools
from wantune.tests.support import trained as trained_runs
from wantune.tests.support.adapted import AdaptedModel, random_batch
from wantune.trainer.base.errors import UserError

pytestmark = pytest.mark.usefixtures("comfy")

NETWORK = "diffusion_model"
PLAIN_ID = "47ef3d5d208624e9948033cf2490545a9402fabd2870c24330ffae3a1976b49b"
"""Of the small world's transformer, from the commit before injections were part of a MODEL's name."""
LINEARS = ("self_attn.q", "self_attn.v", "cross_attn.k", "ffn.0", "ffn.2")
"""Of each block, on which the LoRA of the tests is."""


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
    """Two LoRA files of rank 2 and alpha 4 in ComfyUI's lists: first.safetensors and second.safetensors."""
    import folder_paths

    folder = tmp_path_factory.mktemp("loras")
    sizes = {"ffn.0": (256, 128), "ffn.2": (128, 256)}
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for module in (f"{NETWORK}.blocks.{block}.{linear}" for block in range(2) for linear in LINEARS):
            out, columns = sizes.get(module.split(".", 3)[3], (128, 128))
            state[f"{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator) * 0.2
            state[f"{module}.lora_down.weight"] = torch.randn(2, columns, generator=generator) * 0.2
            state[f"{module}.alpha"] = torch.tensor(4.0)
        save_file(state, folder / f"{name}.safetensors")
    patch = pytest.MonkeyPatch()
    patch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    patch.setattr(folder_paths, "filename_list_cache", {})
    yield folder
    patch.undo()


def merged(model, name: str = "first", strength: float = 1.0):
    import nodes

    with torch.inference_mode():
        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, f"{name}.safetensors", strength)[0]


def bypass(model, name: str = "first", strength: float = 1.0):
    loader = pytest.importorskip("comfy_extras.nodes_lora_debug").LoraLoaderBypassModelOnly
    with torch.inference_mode():
        return loader().load_lora_model_only(model, f"{name}.safetensors", strength)[0]


def shifted(model, shift: float = 5.0):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def compiled(model):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "eager")[0]


def compiled_in_place(model):
    """As packs compile: the compiled blocks take the place of the blocks."""
    model = model.clone()
    for number in range(2):
        name = f"{NETWORK}.blocks.{number}"
        model.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))
    return model


def guided(model, scale: float = 1.5):
    """As NAG does: the forward of each cross-attention is replaced, and what it gives depends on a setting."""
    model = model.clone()
    for number in range(2):
        attention = model.get_model_object(f"{NETWORK}.blocks.{number}.cross_attn")

        def guided_forward(x, context, attention=attention, **options):
            return type(attention).forward(attention, x, context, **options).detach() * scale

        model.add_object_patch(f"{NETWORK}.blocks.{number}.cross_attn.forward", guided_forward)
    return model


def wrapped(model):
    import comfy.patcher_extension

    def cached_forward(executor, *args, **kwargs):
        return executor(*args, **kwargs) * 0.9

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "easycache", cached_forward)
    return model


def with_options(model):
    def fast_attention(function, *args, **kwargs):
        return function(*args, **kwargs) * 1.01

    def tea_cache(apply_model, options):
        return apply_model(options["input"], options["timestep"], **options["c"]) * 0.5

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = fast_attention
    model.set_model_unet_function_wrapper(tea_cache)
    return model


def id_of(model) -> str:
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    return ComfyDenoiser(model).id


def trained(model, checkpointing: bool = False, around=lambda: None):
    """The loss of each sample and the gradients of an adapter, after which the model is let go of."""
    adapted = AdaptedModel(model)
    batch = random_batch((1, 4, 6), (0.3, 0.8), adapted.denoiser.device)
    with adapted.attached(checkpointing):
        around()
        loss_B = adapted.loss_B(batch)
        return loss_B.detach(), adapted.gradients(loss_B)


def assert_close(found, expected, tolerance: float = 1e-4):
    (loss, gradients), (true_loss, true_gradients) = found, expected
    torch.testing.assert_close(loss, true_loss, rtol=tolerance, atol=0)
    for key, truth in true_gradients.items():
        error = (gradients[key] - truth).norm() / truth.norm()
        assert error < tolerance, (key, float(error))


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][key], truth) for key, truth in expected[1].items())


class Sampled:
    """What MODELs over the same weights sample, and the names of the weights; must be so again afterwards."""

    def __init__(self, *models) -> None:
        self.models = models
        self.videos = [tools.sample(model) for model in models]
        self.keys = list(models[0].model.state_dict())

    def assert_again(self) -> None:
        for _ in range(2):  # ComfyUI has loaded one of them; each once after another
            for model, video in zip(self.models, self.videos, strict=True):
                assert torch.equal(tools.sample(model), video)
        assert list(self.models[0].model.state_dict()) == self.keys
        assert [[*model.injections] for model in self.models] == [
            ["bypass_lora"] if model.injections else [] for model in self.models]


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


CHANGES = {"weights": merged, "shift": shifted, "object patch": guided, "wrapper": wrapped, "options": with_options}
"""Besides a Bypass LoRA, which is put on at every place among them."""


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
