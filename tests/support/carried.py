"""What other nodes and packs put on a MODEL, and what is compared of such a MODEL: its names, training and samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from . import tools
from .adapted import AdaptedModel, random_batch

NETWORK = "diffusion_model"
LINEARS = ("self_attn.q", "self_attn.v", "cross_attn.k", "ffn.0", "ffn.2")
"""Of each block, on which the LoRA of the tests is."""


def lora_folder(folder: Path, dim: int = 128, ffn_dim: int = 256):
    """Write two LoRA files of rank 2 and alpha 4, first.safetensors and second.safetensors, for a model of this width,
    and make the folder the only one of ComfyUI's LoRA lists; the MonkeyPatch that is returned puts the lists back by
    undo()."""
    import folder_paths

    sizes = {"ffn.0": (ffn_dim, dim), "ffn.2": (dim, ffn_dim)}
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for module in (f"{NETWORK}.blocks.{block}.{linear}" for block in range(2) for linear in LINEARS):
            out, columns = sizes.get(module.split(".", 3)[3], (dim, dim))
            state[f"{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator) * 0.2
            state[f"{module}.lora_down.weight"] = torch.randn(2, columns, generator=generator) * 0.2
            state[f"{module}.alpha"] = torch.tensor(4.0)
        save_file(state, folder / f"{name}.safetensors")
    patch = pytest.MonkeyPatch()
    patch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    patch.setattr(folder_paths, "filename_list_cache", {})
    return patch


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


CHANGES = {"weights": merged, "shift": shifted, "object patch": guided, "wrapper": wrapped, "options": with_options}
"""Besides a Bypass LoRA, which is put on at every place among them."""
