"""Apply LoRA against ComfyUI's own loader, bit for bit on every weight, and what it says of the modules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.lora import keys as lora_keys
from wantune.trainer.settings.training import LoraConfig

pytestmark = pytest.mark.usefixtures("comfy")

DIM, FFN, RANK, ALPHA = 128, 256, 4, 16.0
LINEARS = {f"{attn}.{leaf}": (DIM, DIM) for attn in ("self_attn", "cross_attn") for leaf in "qkvo"} | {
    "ffn.0": (FFN, DIM), "ffn.2": (DIM, FFN)}
OUTSIDE = {"text_embedding.0": (DIM, 4096), "text_embedding.2": (DIM, DIM), "time_embedding.0": (DIM, 256),
           "time_embedding.2": (DIM, DIM), "time_projection.1": (6 * DIM, DIM), "head.head": (64, DIM)}
SIZES = {f"blocks.{block}.{name}": size for block in range(2) for name, size in LINEARS.items()}
DIFFUSERS = {"self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
             "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
             "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj",
             "ffn.2": "ffn.net.2"}
NORMS = {f"blocks.{block}.{name}": (DIM,) for block in range(2)
         for name in ("norm3", "self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k")}


@pytest.fixture(scope="module")
def model(comfy, tmp_path_factory):
    return tools.load_dit(tools.random_dit(tmp_path_factory.mktemp("apply"), dim=DIM, ffn_dim=FFN))


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """ComfyUI's loras folder."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.05


def matrices(sizes: dict, prefix: str = "diffusion_model.", down: str = "lora_A.weight", up: str = "lora_B.weight",
             alpha: float | None = None) -> dict[str, torch.Tensor]:
    state = {}
    for name, (rows, columns) in sizes.items():
        state[f"{prefix}{name}.{down}"], state[f"{prefix}{name}.{up}"] = values(RANK, columns), values(rows, RANK)
        state |= {f"{prefix}{name}.alpha": torch.tensor(alpha)} if alpha else {}
    return state


def underscored(prefix: str, sizes: dict) -> dict[str, torch.Tensor]:
    names = {name.replace(".", "_"): size for name, size in sizes.items()}
    return matrices(names, prefix, "lora_down.weight", "lora_up.weight", alpha=2.0)


def norms() -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{name}.diff": values(*shape) for name, shape in NORMS.items()} | {
        f"diffusion_model.blocks.{block}.norm3.diff_b": values(DIM) for block in range(2)}


def lokr(full: bool) -> dict[str, torch.Tensor]:
    key = "diffusion_model.blocks.0.ffn.0"
    second = {"lokr_w2": values(32, 16)} if full else {"lokr_w2_a": values(32, 4), "lokr_w2_b": values(4, 16)}
    return {f"{key}.{name}": value for name, value in {"lokr_w1": values(8, 8), **second}.items()} | {
        f"{key}.alpha": torch.tensor(8.0)}


KEY = "diffusion_model.blocks.0.self_attn.q"
READ_BY_COMFYUI = {
    "ours": (matrices(SIZES, alpha=8.0), "20 of 20"),
    "musubi with modules outside the blocks": (underscored("lora_unet_", SIZES | OUTSIDE), "26 of 26"),
    "videox-fun with modules outside the blocks": (underscored("lora_unet__", SIZES | OUTSIDE), "26 of 26"),
    "norms": (norms(), "10 of 10"),
    "kijai": (matrices(SIZES, down="lora_down.weight", up="lora_up.weight") | norms() | {
        f"diffusion_model.{name}.diff_b": values(size[0]) for name, size in SIZES.items()}, "30 of 30"),
    "a bias alone": (matrices(SIZES) | {"diffusion_model.head.head.diff_b": values(64)}, "21 of 21"),
    "patch embedding and modulation": ({
        "diffusion_model.patch_embedding.diff": values(DIM, 16, 1, 2, 2),
        "diffusion_model.patch_embedding.diff_b": values(DIM),
        "diffusion_model.blocks.0.modulation.diff": values(1, 6, DIM),
        "diffusion_model.head.modulation.diff": values(1, 2, DIM)}, "3 of 3"),
    "a convolution's lora": ({"diffusion_model.patch_embedding.lora_up.weight": values(DIM, 4, 1, 1, 1),
                              "diffusion_model.patch_embedding.lora_down.weight": values(4, 16, 1, 2, 2)}, "1 of 1"),
    "set weight": ({"diffusion_model.blocks.0.norm3.set_weight": values(DIM)}, "1 of 1"),
    "lokr": (lokr(full=False), "1 of 1"), "lokr, full": (lokr(full=True), "1 of 1"),
    "loha": ({f"{KEY}.hada_{name}": values(*shape) for name, shape in (
        ("w1_a", (DIM, 4)), ("w1_b", (4, DIM)), ("w2_a", (DIM, 4)), ("w2_b", (4, DIM)))}, "1 of 1"),
    "oft": ({f"{KEY}.oft_blocks": values(8, 16, 16), f"{KEY}.alpha": torch.tensor(0.1)}, "1 of 1"),
    "glora": ({f"{KEY}.{name}.weight": values(*shape) for name, shape in (
        ("a1", (4, DIM)), ("a2", (DIM, 4)), ("b1", (4, DIM)), ("b2", (DIM, 4)))}, "1 of 1"),
    "dora": ({**matrices({"blocks.0.self_attn.q": (DIM, DIM)}), f"{KEY}.dora_scale": values(DIM, 1).abs()}, "1 of 1"),
    "a bias as a parameter": ({f"{KEY}.bias.diff": values(DIM)}, "1 of 1"),
    "both of kohya's names": (underscored("lora_unet_", SIZES) | matrices(SIZES), "20 of 40"),
    "lora and difference of one weight": ({**matrices(SIZES), f"{KEY}.diff": values(DIM, DIM)}, "19 of 20"),
    "image modules": (matrices(SIZES | {"blocks.0.cross_attn.k_img": (DIM, DIM)}), "20 of 21"),
    "another shape of one": (matrices(SIZES) | {"diffusion_model.patch_embedding.diff": values(DIM, 36, 1, 2, 2)},
                             "20 of 21"),
    "a bias that the model has not": (matrices(SIZES) | {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": values(DIM),
        "diffusion_model.blocks.0.self_attn.norm_q.diff_b": values(DIM)}, "20 of 21"),
    "half a module": ({key: value for key, value in matrices(SIZES).items() if key != f"{KEY}.lora_B.weight"},
                      "19 of 20"),
    "modules of the text encoder": (matrices(SIZES) | matrices({"lora_te_block_0_q": (8, 8)}, ""), "20 of 21"),
}


def weights(patcher) -> dict[str, torch.Tensor]:
    """Every weight of a MODEL with its patches."""
    import comfy.lora

    return {key: comfy.lora.calculate_weight(patcher.patches.get(key, []), value.clone().float(), key)
            for key, value in patcher.model.state_dict().items()}


def same(found: dict, expected: dict) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(found[key], expected[key]) for key in found)


def by_comfyui(model, name: str):
    import nodes

    with torch.inference_mode():
        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 0.7)[0]


def applied(model, strength: float = 0.7, **lora) -> tuple[dict, str]:
    from wantune.nodes.lora import ApplyLoRA

    with torch.inference_mode():
        output = ApplyLoRA.execute(model, strength, **lora)
        return weights(output.result[0]), output.ui.as_dict()["text"][0]


@pytest.mark.parametrize("kind", READ_BY_COMFYUI)
def test_what_comfyui_applies_is_applied_bit_for_bit_and_counted(model, loras, kind):
    state, count = READ_BY_COMFYUI[kind]
    save_file(state, loras / "a.safetensors")
    with torch.inference_mode():
        expected = weights(by_comfyui(model, "a.safetensors"))
        base = weights(model)
    assert not same(expected, base)
    for lora in ({"file": "a.safetensors"}, {"lora": "a.safetensors"}, {"lora": dict(state)},
                 {"lora": lora_file.load(loras / "a.safetensors")}):
        found, text = applied(model, **lora)
        assert same(found, expected)
        assert text.startswith(f"{count} modules matched, strength 0.7")


@pytest.mark.parametrize(("kind", "sentence"), [
    ("image modules", "The model does not have blocks.0.cross_attn.k_img.\nThe LoRA was made for a Wan model of width "
     "128 with 2 blocks (Wan2.1 image-to-video"),
    ("another shape of one", "The model has another shape of patch_embedding."),
    ("half a module", "One of two matrices is missing in blocks.0.self_attn.q."),
    ("a bias that the model has not", "Only a part is applied of blocks.0.self_attn.norm_q."),
    ("modules of the text encoder", "The model does not have lora_te_block_0_q."),
])
def test_what_is_not_applied_is_named(model, kind, sentence):
    text = applied(model, lora=dict(READ_BY_COMFYUI[kind][0]))[1]
    assert sentence in text and text.count("\n") <= 2


def in_diffusers(name: str) -> str:
    blocks, number, leaf = name.split(".", 2)
    return f"{blocks}.{number}.{DIFFUSERS[leaf]}"


ADAPTER = {"down": "lora_A.mine.weight", "up": "lora_B.mine.weight"}
FFN_ALONE = {name: size for name, size in SIZES.items() if "ffn" in name}
BEYOND_COMFYUI = {
    **{prefix: matrices(SIZES, prefix) for prefix in (
        "pipe.dit.", "dit.", "module.", "_orig_mod.", "transformer.", "base_model.model.", "model.diffusion_model.",
        "base_model.model.diffusion_model.", "module._orig_mod.", "somebody.elses.wrapper.", "")},
    "adapter name": matrices(SIZES, "base_model.model.", **ADAPTER),
    "adapter name under comfyui's prefix": matrices(SIZES, **ADAPTER),
    "feed-forward alone": matrices({in_diffusers(name): size for name, size in FFN_ALONE.items()}, "transformer."),
    "diffusers, with norms and modulation": matrices(
        {in_diffusers(name): size for name, size in SIZES.items()}, "transformer.") | {
        "transformer.blocks.0.norm2.diff": values(DIM), "transformer.blocks.0.attn1.norm_q.diff": values(DIM),
        "transformer.blocks.1.scale_shift_table.diff": values(1, 6, DIM)},
    "lycoris": underscored("lycoris_", SIZES | OUTSIDE),
    "videox-fun without cross-attention": underscored(
        "lora_unet__", {name: size for name, size in (SIZES | OUTSIDE).items() if "cross" not in name}),
}
SAME_AS = {"feed-forward alone": matrices(FFN_ALONE), "lycoris": underscored("lora_unet_", SIZES | OUTSIDE),
           "diffusers, with norms and modulation": matrices(SIZES) | {
               "diffusion_model.blocks.0.norm3.diff": values(DIM),
               "diffusion_model.blocks.0.self_attn.norm_q.diff": values(DIM),
               "diffusion_model.blocks.1.modulation.diff": values(1, 6, DIM)},
           "videox-fun without cross-attention": underscored(
               "lora_unet_", {name: size for name, size in (SIZES | OUTSIDE).items() if "cross" not in name})}


@pytest.mark.parametrize("kind", BEYOND_COMFYUI)
def test_names_that_comfyui_does_not_know_are_applied_as_those_it_knows(model, loras, kind):
    save_file(BEYOND_COMFYUI[kind], loras / "theirs.safetensors")
    save_file(SAME_AS.get(kind, matrices(SIZES)), loras / "known.safetensors")
    with torch.inference_mode():
        expected = weights(by_comfyui(model, "known.safetensors"))
    found, text = applied(model, file="theirs.safetensors")
    assert same(found, expected)
    count = int(text.split()[0])
    assert text == f"{count} of {count} modules matched, strength 0.7"


def scaled(model, loras: Path, scale: dict[str, float]) -> dict[str, torch.Tensor]:
    """Every weight with the LoRA of `matrices(SIZES)`, each module at the scale of the first part its name has."""
    state = matrices(SIZES)
    for name in SIZES:
        factor = next((factor for part, factor in scale.items() if part in name), 1.0)
        state[f"diffusion_model.{name}.alpha"] = torch.tensor(factor * RANK, dtype=torch.float64)
    save_file(state, loras / "scaled.safetensors")
    with torch.inference_mode():
        found = weights(by_comfyui(model, "scaled.safetensors"))
    (loras / "scaled.safetensors").unlink()
    return found


def of_diffusers(**settings) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()})}


@pytest.mark.parametrize(("header", "beside", "scale"), [
    (of_diffusers(r=4, lora_alpha=8), None, {"": 2.0}),
    (of_diffusers(r=4, lora_alpha=8, use_rslora=True), None, {"": 4.0}),
    (of_diffusers(r=4, lora_alpha=4, alpha_pattern={"attn1.to_q": 16, "ffn.net.0.proj": 16}), None,
     {"self_attn.q": 4.0, "ffn.0": 4.0}),
    (of_diffusers(r=64, lora_alpha=8, rank_pattern={"attn1.to_q": 4}), None, {"": 2.0}),
    (of_diffusers(r=4, lora_alpha=8, alpha_pattern={r"^blocks\.1\..*": 4}, use_rslora=True), None,
     {"blocks.1": 2.0, "": 4.0}),
    ({"lora_alpha": "8"}, None, {"": 2.0}), ({"ss_network_alpha": "8"}, None, {"": 2.0}),
    ({"network_alpha": "8.0", "use_rslora": "True"}, None, {"": 4.0}),
    ({"peft_config": json.dumps({"lora_alpha": 12, "r": 4})}, None, {"": 3.0}),
    (None, {"lora_alpha": 16, "r": 4}, {"": 4.0}),
    (None, {"lora_alpha": 4, "r": 4, "use_rslora": True, "alpha_pattern": {"to_k": 8}}, {"attn.k": 4.0, "": 2.0}),
    ({"ss_network_alpha": "None"}, None, {}), ({"lora_adapter_metadata": "{damaged"}, None, {}),
])
def test_the_scale_is_the_writers_wherever_it_stands(model, loras, header, beside, scale):
    expected = scaled(model, loras, scale)
    state = matrices({in_diffusers(name): size for name, size in SIZES.items()}, "transformer.")
    save_file(state, loras / "a.safetensors", header)
    if beside:
        (loras / "adapter_config.json").write_text(json.dumps(beside))
    assert same(applied(model, file="a.safetensors")[0], expected)
    saved = lora_file.load(loras / "a.safetensors")
    lora_file.save(loras / "b.safetensors", saved, saved.metadata)
    with torch.inference_mode():
        assert same(weights(by_comfyui(model, "b.safetensors")), expected), "nor is it lost when it is saved again"


def test_alpha_tensors_win_and_comfyuis_own_files_are_scaled_as_comfyui_does(model, loras):
    explicit = matrices(SIZES, "transformer.", alpha=2.0)
    save_file(explicit, loras / "a.safetensors", {"lora_alpha": "16"})
    assert same(applied(model, file="a.safetensors")[0], scaled(model, loras, {"": 0.5}))
    save_file(matrices(SIZES), loras / "b.safetensors", {"lora_alpha": "16"})
    found, text = applied(model, file="b.safetensors")
    assert same(found, scaled(model, loras, {}))
    assert "alpha 16 at rank 4, but ComfyUI's own loader applies such files at scale 1" in text
    save_file(matrices(SIZES), loras / "c.safetensors", {"ss_network_alpha": "1"})  # musubi-tuner's convert_lora.py
    assert applied(model, file="c.safetensors")[1] == "20 of 20 modules matched, strength 0.7"


def test_a_config_of_one_file_is_not_taken_for_another(model, loras):
    (loras / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16}))
    for name in "ab":
        save_file(matrices(SIZES, "transformer."), loras / f"{name}.safetensors")
    assert same(applied(model, file="a.safetensors")[0], scaled(model, loras, {}))


def test_pefts_dora_is_applied(model, loras):
    state = matrices(SIZES, "base_model.model.") | {
        f"base_model.model.{name}.lora_magnitude_vector": values(size[0]).abs() + 1 for name, size in SIZES.items()}
    known = matrices(SIZES) | {
        f"diffusion_model.{name}.dora_scale": (values(size[0]).abs() + 1)[:, None] for name, size in SIZES.items()}
    save_file(known, loras / "known.safetensors")
    with torch.inference_mode():
        expected = weights(by_comfyui(model, "known.safetensors"))
    found, text = applied(model, lora=state)
    assert same(found, expected) and text.startswith("20 of 20")


def broken(change) -> dict[str, torch.Tensor]:
    state = matrices(SIZES)
    change(state)
    return state


UNSOUND = {
    "nan": (broken(lambda state: state[f"{KEY}.lora_A.weight"][1, 2].fill_(float("nan"))),
            r"blocks.0.self_attn.q has values that are not finite in lora_A.weight"),
    "infinite alpha": (broken(lambda state: state.update({f"{KEY}.alpha": torch.tensor(float("inf"))})),
                       r"blocks.0.self_attn.q has values that are not finite in alpha"),
    "rank 0": ({key: value[:0] if "lora_A" in key else value[:, :0] for key, value in matrices(SIZES).items()},
               r"blocks.0.self_attn.q has rank 0 \(lora_A.weight is 0 x 128\)"),
    "two alphas": (broken(lambda state: state.update({f"{KEY}.alpha": torch.ones(2)})), "has an alpha of 2 numbers"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_what_cannot_be_computed_with_is_neither_applied_nor_continued_nor_saved(model, loras, kind):
    from wantune.nodes.backend.denoiser import linear_sizes
    from wantune.nodes.lora import SaveLoRA

    state, sentence = UNSOUND[kind]
    with pytest.raises(UserError, match=sentence):
        applied(model, lora=dict(state))
    with pytest.raises(UserError, match=sentence):
        lora_file.continued(lora_keys.normalize(state), LoraConfig(), linear_sizes(model))
    with pytest.raises(UserError, match=sentence):
        SaveLoRA.execute(dict(state), "a")
    assert not list(loras.rglob("*.safetensors"))


def test_what_is_no_lora_is_told_as_what_it_is(model, loras):
    whole = {key.removeprefix("diffusion_model."): value.clone() for key, value in model.model.state_dict().items()
             if key.startswith("diffusion_model.")}
    save_file(whole, loras / "whole.safetensors")
    save_file({"conv1.weight": values(4, 4)}, loras / "vae.safetensors")
    (loras / "old.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    (loras / "page.safetensors").write_text("<!DOCTYPE html><title>Log in</title>")
    for name, sentence in (("whole.safetensors", "whole.safetensors is a whole model and no LoRA; load it with Load D"),
                           ("vae.safetensors", "holds no LoRA .its first key is conv1.weight."),
                           ("old.pt", "old.pt is a pickle file, as .pt and .ckpt files are"),
                           ("page.safetensors", "page.safetensors is a web page and no LoRA")):
        with pytest.raises(UserError, match=sentence):
            applied(model, file=name)


@pytest.mark.parametrize(("module", "name"), [
    ("transformer.single_transformer_blocks.0.attn.to_q", "Flux or HunyuanVideo"),
    ("lora_unet_double_blocks_0_img_attn_qkv", "Flux or HunyuanVideo|HunyuanVideo"),
    ("diffusion_model.double_blocks.19.img_attn.qkv", "HunyuanVideo"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "Stable Diffusion"),
    ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
    ("diffusion_model.layers.0.attention.qkv", "Lumina or Z-Image"),
    ("something.else.to_q", "something other than Wan"),
])
def test_a_lora_for_another_model_is_named(model, module, name):
    with pytest.raises(UserError, match=f"made for ({name}).*other than Wan|made for {name}"):
        applied(model, lora=matrices({module: (64, 64)}, ""))


@pytest.mark.parametrize("kind", ["norms", "lokr", "patch embedding and modulation", "oft"])
def test_what_cannot_be_continued_is_named_as_what_it_is(model, kind):
    from wantune.nodes.backend.denoiser import linear_sizes

    with pytest.raises(UserError, match="The LoRA to continue holds (changes of whole weights|LoKr|OFT) "):
        lora_file.continued(lora_keys.normalize(READ_BY_COMFYUI[kind][0]), LoraConfig(), linear_sizes(model))


@pytest.mark.parametrize("kind", BEYOND_COMFYUI.keys() - SAME_AS.keys())
def test_every_writers_file_can_be_continued(model, loras, kind):
    from wantune.nodes.backend.denoiser import linear_sizes

    save_file(BEYOND_COMFYUI[kind], loras / "a.safetensors", {"lora_alpha": "8"})
    config, found = lora_file.continued(lora_file.load(loras / "a.safetensors"), LoraConfig(), linear_sizes(model))
    assert (config.rank, config.alpha) == (RANK, 8) and len(found) == 40
