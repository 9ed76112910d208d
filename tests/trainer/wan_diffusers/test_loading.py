"""Loading a transformer: diffusers' folders, and every form of ComfyUI's single files that is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import on_diffusers, quantised, wan_models
from wantune.tests.support.on_diffusers import CPU
from wantune.trainer.base.errors import UserError
from wantune.trainer.wan_diffusers.loading import family_of_transformer, load_transformer
from wantune.trainer.wan_diffusers.names import comfyui_name

NAME = "Wan2.1 T2V"


@pytest.fixture(scope="module")
def state():
    return wan_models.state_dict(NAME, layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What diffusers writes of a whole pipeline, as far as the transformer goes."""
    root = tmp_path_factory.mktemp("folder")
    transformer = on_diffusers.denoiser(NAME, root, layers=1)._transformer
    transformer.save_pretrained(root / "pipeline" / "transformer")
    return root / "pipeline"


def values(transformer) -> dict[str, torch.Tensor]:
    return {comfyui_name(name): value for name, value in transformer.named_parameters()}


def loaded(path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    transformer = load_transformer(path, dtype, CPU)
    assert not transformer.training and transformer.rope.freqs_cos.dtype == torch.float32
    return values(transformer)


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.float()), name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_with_a_prefix_and_with_other_models_in_it(state, tmp_path, prefix):
    others = {"first_stage_model.encoder.conv1.weight": torch.zeros(2)} if prefix.startswith("model.") else {}
    save_file({f"{prefix}{key}": value for key, value in state.items()} | others, tmp_path / "model.safetensors")
    assert_same(loaded(tmp_path / "model.safetensors"), state)


def test_a_folder_of_diffusers_its_root_and_a_file_of_it(folder, state):
    for path in (folder, folder / "transformer", folder / "transformer" / "diffusion_pytorch_model.safetensors"):
        assert_same(loaded(path), state)
    low = loaded(folder, torch.bfloat16)
    assert low["blocks.0.ffn.0.weight"].dtype == torch.bfloat16 and low["blocks.0.norm3.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_file_of_few_bits_becomes_its_values(state, tmp_path, dtype):
    few = {key: value.to(dtype) for key, value in state.items()}
    save_file(few, tmp_path / "few.safetensors")
    assert_same(loaded(tmp_path / "few.safetensors"), few)


SCALE = 0.003


@pytest.mark.parametrize("version", ["older", "newer", "in the header"])
def test_fp8_with_scales_is_dequantised(comfy, state, tmp_path, version):
    stored, expected, layers = {}, {}, {}
    for key, value in state.items():
        if value.dim() == 2:
            module, weight = key.removesuffix(".weight"), (value / SCALE).to(torch.float8_e4m3fn)
            scale = "scale_weight" if version == "older" else "weight_scale"
            stored |= {key: weight, f"{module}.{scale}": torch.tensor(SCALE)}
            if version == "older":
                stored[f"{module}.scale_input"] = torch.tensor(1.0)
            elif version == "newer":
                marker = json.dumps({"format": "float8_e4m3fn"}).encode()
                stored[f"{module}.comfy_quant"] = torch.tensor(list(marker), dtype=torch.uint8)
            layers[module] = {"format": "float8_e4m3fn"}
            expected[key] = weight.float() * SCALE
        else:  # ComfyUI 0.3.75 rounds biases as well
            is_bias = key.endswith(".bias")
            stored[key] = expected[key] = value.to(torch.float8_e4m3fn).float() if is_bias else value
    if version == "older":
        stored["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    header = {"_quantization_metadata": json.dumps({"layers": layers})} if version == "in the header" else None
    save_file(stored, tmp_path / "scaled.safetensors", header)
    found = loaded(tmp_path / "scaled.safetensors")
    assert_same(found, expected)
    off = {key: on_diffusers.relative(found[key], state[key]) for key in state if key.endswith(".q.weight")}
    assert all(error < 0.05 for error in off.values())
    if version == "older":  # which every version of ComfyUI reads
        import comfy.sd

        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(tmp_path / "scaled.safetensors"))
        theirs = wan_velocity(model)
        assert on_diffusers.relative(velocity_of(tmp_path / "scaled.safetensors"), theirs) < 1e-5


def batch():
    from wantune.tests.support.adapted import batch_of

    return batch_of(NAME, (1, 4, 4), (0.6,), CPU)


def wan_velocity(model) -> torch.Tensor:
    from wantune.tests.support.adapted import AdaptedModel

    adapted, given = AdaptedModel(model), batch()
    with adapted.attached(), torch.no_grad(), adapted.adapter.switched_off():
        return adapted.denoiser.velocity(given.noise_BCFHW, given.t_B, adapted.conditions(given))


def velocity_of(path) -> torch.Tensor:
    adapted = on_diffusers.Adapted(on_diffusers.of(load_transformer(path, torch.float32, CPU)))
    with adapted.attached(), torch.no_grad():
        return adapted.velocity(batch().noise_BCFHW, batch())


@pytest.mark.parametrize("name", ["Wan2.1 I2V", "Wan2.1 FLF2V", "Wan2.1 Fun-Control", "Wan2.2 I2V", "Wan2.2 5B"])
def test_a_familys_folder_and_file_are_told_by_their_shapes(tmp_path, name):
    path = wan_models.write(name, tmp_path / "model.safetensors", layers=1)
    transformer = load_transformer(path, torch.float32, CPU)
    transformer.save_pretrained(tmp_path / "folder")
    for each in (transformer, load_transformer(tmp_path / "folder", torch.float32, CPU)):
        assert family_of_transformer(each).name == name
        assert_same(values(each), load_file(path))


def test_fun_control_with_a_reference_that_nothing_reads(tmp_path):
    state = wan_models.state_dict("Wan2.1 Fun-Control", layers=1)
    save_file(state | {"ref_conv.weight": torch.zeros(128, 16, 2, 2)}, tmp_path / "model.safetensors")
    assert_same(loaded(tmp_path / "model.safetensors"), state)


REFUSED = {
    "Wan2.1 VACE": "The model is Wan VACE; without ComfyUI Wan2.1 T2V, .* and Wan2.2 5B are trained",
    "Wan2.2 Fun-Control": "The model is Wan2.2 Fun-Control, or another Wan with a reference image; without ComfyUI",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_wans_are_refused_by_name(tmp_path, name):
    path = wan_models.write(name, tmp_path / "model.safetensors", layers=1)
    with pytest.raises(UserError, match=REFUSED[name]):
        load_transformer(path, torch.float32, CPU)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"control_adapter.conv.weight": (1,)}, "The model is Wan Fun-Camera; without"),
    ({"patch_embedding.weight": (128, 100, 1, 2, 2), "head.head.weight": (192, 128)}, "is Wan2.2 Fun-InP 5B; without"),
    ({"patch_embedding.weight": (128, 20, 1, 2, 2)}, "is a variant of Wan that takes 20 channels for latents of 16"),
    ({"blocks.0.ffn.2.weight": None, "blocks.0.ffn.2.bias": None},
     "The transformer has no blocks.0.ffn.2.bias and 1 more, so it is not a whole one; take the whole file"),
    ({"blocks.0.ffn.0.weight": None}, "The transformer has no blocks.0.ffn.0.weight, so it is not a whole one"),
    ({"blocks.0.gate.weight": (1,)}, "model.safetensors has blocks.0.gate.weight, which diffusers' WanTransformer3D"),
    ({"blocks.0.ffn.2.bias": (7,)}, r"blocks.0.ffn.2.bias of model.safetensors has the shape \(7,\), a Wan of this "),
    ({"head.modulation": None}, "This is no transformer of Wan .it has "),
])
def test_files_that_are_no_whole_wan_are_refused(state, tmp_path, changes, sentence):
    changed = {key: value for key, value in state.items() if key not in changes}
    changed |= {key: torch.zeros(shape) for key, shape in changes.items() if shape is not None}
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_transformer(tmp_path / "model.safetensors", torch.float32, CPU)


@pytest.mark.parametrize("layout", ["nvfp4", "int8"])
def test_layouts_that_only_comfyui_reads_are_named(comfy, state, tmp_path, layout):
    marker = json.dumps({"format": quantised.LAYOUTS[layout][0]}).encode()
    marked = {"blocks.0.ffn.0.comfy_quant": torch.tensor(list(marker), dtype=torch.uint8)}
    save_file(state | marked, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"holds weights as {quantised.LAYOUTS[layout][0]}, which only ComfyUI reads"):
        load_transformer(tmp_path / "model.safetensors", torch.float32, CPU)


def test_what_is_no_model_is_refused(tmp_path, folder):
    for name, content in (("a.gguf", b"GGUF"), ("damaged.safetensors", b"x" * 100)):
        (tmp_path / name).write_bytes(content)
    told = {"a.gguf": "a.gguf is a GGUF file, which only ComfyUI reads; take the safetensors file",
            "damaged.safetensors": "damaged.safetensors cannot be read .* give a safetensors file",
            "missing.safetensors": "missing.safetensors cannot be read .* give a safetensors file",
            "": "is no folder of a transformer that diffusers wrote .* give one, or ComfyUI's"}
    for name, sentence in told.items():
        with pytest.raises(UserError, match=sentence):
            load_transformer(tmp_path / name, torch.float32, CPU)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    for changes, sentence in (({"_class_name": "WanVACETransformer3DModel"}, "holds Wan VACE, not a WanTransformer3D"),
                              ({"_class_name": "FluxTransformer2DModel"}, "holds a FluxTransformer2DModel, not a Wan"),
                              ({"in_channels": 32}, "The model is Wan Fun-Camera; without ComfyUI"),
                              ({}, "cannot be read .* copy it anew, or give ComfyUI's safetensors file")):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=sentence):
            load_transformer(tmp_path, torch.float32, CPU)
