"""Networks of Wan that others wrote, with our weights and adapter: diffusers, the authors' own, musubi-tuner.

Each is a function (state, name) -> Network. The last two lie in folders that the user names; a test skips without.

Shape legend: B batch, F latent frames, L tokens.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from . import wan_models
from .adapted import ALPHA, RANK, AdaptedModel, Batch

AUTHORS = "WANTUNE_WAN22"
"""Names the folder into which the PyPI package wan22 was installed (pip install --no-deps --target FOLDER wan22)."""

MUSUBI = "WANTUNE_MUSUBI"
"""Names a checkout of kohya-ss/musubi-tuner."""

HEAD_WIDTH = 128


@dataclass
class Network:
    """A network, and how it is called."""

    module: torch.nn.Module
    call: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
    """(x_BCFHW, timestep, text_BLD, what `ComfyDenoiser.prepared` gave) -> velocity_BCFHW, where the timestep is (B,),
    or (B, L) where frames of a sample have noise levels of their own."""
    names: Callable[[str], str] = str
    """From a Linear's name in Wan's own files to its name here."""

    def adapt(self, adapted: AdaptedModel) -> None:
        """Put the adapter's matrices beside its Linears, by PEFT."""
        import peft

        names = {name: self.names(name) for name in adapted.linears}
        self.module.requires_grad_(False)
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(names.values())), self.module)
        self.parameters = {}
        for key, value in adapted.adapter.state_dict().items():
            name, kind = key.removesuffix(".weight").rsplit(".", 1)
            parameter = getattr(self.module.get_submodule(names[name]), kind)["default"].weight
            parameter.data.copy_(value)
            self.parameters[key] = parameter

    def step(self, batch: Batch, prepared: Mapping[str, torch.Tensor], tokens_per_frame: int):
        """Velocity, loss of each sample, and the gradient of the mean loss by our keys."""
        t_B1111 = batch.t_B[:, None, None, None, None]
        x_BCFHW = (1 - t_B1111) * batch.latent_BCFHW + t_B1111 * batch.noise_BCFHW
        timestep = 1000 * batch.t_B
        if "known" in prepared:
            timestep = (timestep[:, None] * (1 - prepared["known"])).repeat_interleave(tokens_per_frame, dim=1)
        velocity = self.call(x_BCFHW, timestep, batch.text_BLD, prepared)
        losses = (velocity - (batch.noise_BCFHW - batch.latent_BCFHW)).square().flatten(1).mean(1)
        gradients = torch.autograd.grad(losses.mean(), list(self.parameters.values()))
        return velocity.detach(), losses.detach(), dict(zip(self.parameters, gradients, strict=True))


def diffusers(state: Mapping[str, torch.Tensor], name: str) -> Network:
    """diffusers' WanTransformer3DModel, or its WanVACETransformer3DModel."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert

    sizes, wan = _sizes(state), wan_models.WANS[name]
    sees_image = "img_emb.proj.1.weight" in state
    vace = {"vace_layers": list(range(sizes["num_layers"])), "vace_in_channels": 96} if wan.is_vace else {}
    module = (WanVACETransformer3DModel if wan.is_vace else WanTransformer3DModel)(
        num_attention_heads=sizes["num_heads"], attention_head_dim=HEAD_WIDTH, ffn_dim=sizes["ffn_dim"],
        num_layers=sizes["num_layers"], in_channels=sizes["in_dim"], out_channels=sizes["out_dim"],
        image_dim=1280 if sees_image else None, added_kv_proj_dim=sizes["dim"] if sees_image else None,
        pos_embed_seq_len=wan.image_tokens or None, **vace)
    renamed = {"img_emb.proj.0.": "norm1.", "img_emb.proj.1.": "ff.net.0.proj.", "img_emb.proj.3.": "ff.net.2.",
               "img_emb.proj.4.": "norm2.", "img_emb.emb_pos": "pos_embed"}
    converted = convert({key: value for key, value in state.items() if not key.startswith("img_emb.")})
    for key, value in state.items():
        for theirs, here in renamed.items():
            if key.startswith(theirs):
                converted[f"condition_embedder.image_embedder.{here}{key.removeprefix(theirs)}"] = value
    module.load_state_dict(converted)
    module.condition_embedder.timesteps_proj.forward = _sinusoid

    def call(x_BCFHW, timestep, text_BLD, prepared):
        if "c_concat" in prepared:
            x_BCFHW = torch.cat([x_BCFHW, prepared["c_concat"]], dim=1)
        image = prepared.get("clip_fea")
        if image is not None and wan.image_tokens:  # it joins both images itself
            image = image.reshape(-1, wan.image_tokens // 2, image.shape[-1])
        control = {"control_hidden_states": prepared["vace_context"][:, 0]} if wan.is_vace else {}
        return module(x_BCFHW, timestep, _padded(text_BLD), image, return_dict=False, **control)[0]

    def names(ours: str) -> str:
        (key,) = convert({f"{ours}.weight": torch.empty(0)})
        return key.removesuffix(".weight")

    return Network(module, call, names)


def authors(state: Mapping[str, torch.Tensor], name: str) -> Network:
    """The authors' own, of Wan2.2 (package wan22, wan/modules/model.py), with PyTorch's attention in fp32."""
    model = _authors_model()
    sizes = _sizes(state)
    kind = {"Wan2.2 I2V": "i2v", "Wan2.2 5B": "ti2v"}.get(name, "t2v")
    module = model.WanModel(model_type=kind, **sizes)
    module.load_state_dict(state)
    model.sinusoidal_embedding_1d = lambda _width, position: _sinusoid(position)
    model.flash_attention = _attention

    def call(x_BCFHW, timestep, text_BLD, prepared):
        frames, rows, columns = x_BCFHW.shape[2:]
        tokens = frames * rows * columns // 4
        if timestep.dim() == 1:  # its own way from (B,) takes one sample only
            timestep = timestep[:, None].expand(-1, tokens)
        return torch.stack(module(
            list(x_BCFHW), timestep, list(_padded(text_BLD)), tokens,
            y=list(prepared["c_concat"]) if "c_concat" in prepared else None))

    return Network(module, call)


def musubi(state: Mapping[str, torch.Tensor], name: str) -> Network:
    """musubi-tuner's, with PyTorch's attention in fp32."""
    from wantune.bench import rivals

    folder = os.environ.get(MUSUBI)
    if not folder:
        pytest.skip(f"{MUSUBI} names no checkout of musubi-tuner")
    model, _ = rivals._musubi(Path(folder))
    module = model.WanModel(model_type="i2v" if "img_emb.proj.1.weight" in state else "t2v", attn_mode="torch",
                            **_sizes(state))
    module.load_state_dict(state)
    module.train()  # otherwise it adds in place
    model.flash_attention = rivals._fp32_attention
    model.sinusoidal_embedding_1d = lambda _width, position: _sinusoid(position)

    def call(x_BCFHW, timestep, text_BLD, prepared):
        frames, rows, columns = x_BCFHW.shape[2:]
        return torch.stack(module(
            list(x_BCFHW), timestep, list(_padded(text_BLD)), frames * rows * columns // 4,
            clip_fea=prepared.get("clip_fea"), y=list(prepared["c_concat"]) if "c_concat" in prepared else None))

    return Network(module, call)


def _authors_model() -> types.ModuleType:
    folder = os.environ.get(AUTHORS)
    found = importlib.util.find_spec("wan") if not folder else None
    place = Path(folder) / "wan" if folder else Path(found.origin).parent if found and found.origin else None
    if place is None or not (place / "modules" / "model.py").is_file():
        pytest.skip(f"the package wan22 cannot be imported, and {AUTHORS} names no folder of it")
    # under a name of ours, and without running the packages: they import what loads text encoders and video
    for name, path in (("wantune_wan22", place), ("wantune_wan22.modules", place / "modules")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules.setdefault(name, package)
    return importlib.import_module("wantune_wan22.modules.model")


def _sizes(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    ffn_dim, dim = state["blocks.0.ffn.0.weight"].shape
    return {"dim": dim, "ffn_dim": ffn_dim, "num_heads": dim // HEAD_WIDTH,
            "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
            "in_dim": state["patch_embedding.weight"].shape[1], "out_dim": len(state["head.head.weight"]) // 4}


def _padded(text_BLD: torch.Tensor) -> torch.Tensor:
    return functional.pad(text_BLD, (0, 0, 0, 512 - text_BLD.shape[1]))


def _sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """ComfyUI's, which computes the phase, up to 990 radians, in fp32: each other one rounds it otherwise, by 3e-5."""
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    return sinusoidal_embedding_1d(256, timestep)


def _attention(q, k, v, **_options) -> torch.Tensor:
    """(B, L, heads, width of a head) of each to the same."""
    return functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
