"""Trainers outside ComfyUI that WanTune is compared with: their models and their LoRA, on the same weights.

A step of a rival is what its trainer does for one, without reading data: forward in autocast, mean squared error,
backward, clipping, AdamW (fused, as ours). Noise and text lie on the device already, which flatters it.

musubi-tuner is used from a folder that the user names; nothing of it is here.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import peft
import torch
from torch.nn import functional

from ..trainer.model.wan21 import WAN21_T2V
from .peers import Given

HEAD_WIDTH = 128
"""Of Wan2.1."""


class Rival:
    """A network with adapters that is trained on one batch.

    Args:
        network: whose adapters' parameters are the only ones that require a gradient.
        dtype: of the products; the adapters are fp32.
    """

    def __init__(self, network: torch.nn.Module, adapters: torch.nn.Module, given: Given, dtype: torch.dtype) -> None:
        self.network, self.given = network.train(), given
        self.parameters = [parameter for parameter in adapters.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self._device, self._dtype = given.x_BCFHW.device, dtype

    def velocity(self) -> torch.Tensor:
        """velocity_BCFHW as the network predicts it."""
        raise NotImplementedError

    def loss(self) -> torch.Tensor:
        """The mean squared error of the velocity."""
        is_lower = self._dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self._dtype) if is_lower else nullcontext():
            velocity_BCFHW = self.velocity()
        return functional.mse_loss(velocity_BCFHW.float(), self.given.velocity_BCFHW)

    def step(self) -> None:
        """One whole step."""
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class Musubi(Rival):
    """musubi-tuner's WanModel with its LoRA network.

    Args:
        folder: a checkout of it.
        state: the weights by the names of Wan's own files; they are shared, not copied.

    Raises:
        ModuleNotFoundError: something that it imports is not installed.
    """

    def __init__(
        self, folder: Path, state: Mapping[str, torch.Tensor], given: Given, rank: int, checkpointing: bool,
        dtype: torch.dtype,
    ) -> None:
        model, lora = _musubi(folder)
        ffn_dim, dim = state["blocks.0.ffn.0.weight"].shape
        with torch.device("meta"):
            network = model.WanModel(
                dim=dim, ffn_dim=ffn_dim, num_heads=dim // HEAD_WIDTH, num_layers=_num_blocks(state), attn_mode="torch")
        network.freqs = _rope_table(model, HEAD_WIDTH)  # made on the meta device, and no buffer
        network.load_state_dict(state, assign=True)
        network.requires_grad_(False)
        # its attention rounds fp32 to bf16; this compares it in what it computes everything else in
        model.flash_attention = _fp32_attention if dtype == torch.float32 else _own_attention(folder)
        if checkpointing:
            network.enable_gradient_checkpointing()
        adapters = lora.create_arch_network(1.0, rank, float(rank), None, [], network)
        adapters.apply_to([], network, apply_text_encoder=False, apply_unet=True)
        super().__init__(network, adapters.to(given.x_BCFHW.device).requires_grad_(True).train(), given, dtype)

    def velocity(self) -> torch.Tensor:
        given = self.given
        frames, rows, columns = given.x_BCFHW.shape[2:]
        num_tokens = frames * rows * columns // 4
        return torch.stack(self.network(list(given.x_BCFHW), given.t_B, list(given.text_BLD), num_tokens))


class Diffusers(Rival):
    """diffusers' WanTransformer3DModel with PEFT in its Linears; arguments as of `Musubi`."""

    def __init__(
        self, state: Mapping[str, torch.Tensor], given: Given, rank: int, checkpointing: bool, dtype: torch.dtype
    ) -> None:
        from diffusers import WanTransformer3DModel
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert

        ffn_dim, dim = state["blocks.0.ffn.0.weight"].shape
        num_blocks = _num_blocks(state)
        with torch.device("meta"):
            network = WanTransformer3DModel(num_attention_heads=dim // HEAD_WIDTH, attention_head_dim=HEAD_WIDTH,
                                            ffn_dim=ffn_dim, num_layers=num_blocks)
        network.rope = type(network.rope)(HEAD_WIDTH, (1, 2, 2), 1024)  # its tables are no part of the weights
        network.load_state_dict(convert(dict(state)), assign=True)
        network.requires_grad_(False).to(given.x_BCFHW.device)
        if checkpointing:
            network.enable_gradient_checkpointing()
        linears = [f"blocks.{number}.{name}.weight" for number in range(num_blocks) for name in WAN21_T2V.trained]
        names = [key.removesuffix(".weight") for key in convert(dict.fromkeys(linears, state["patch_embedding.bias"]))]
        peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        super().__init__(network, network, given, dtype)

    def velocity(self) -> torch.Tensor:
        given = self.given
        return self.network(given.x_BCFHW, given.t_B, given.text_BLD, return_dict=False)[0]


def _num_blocks(state: Mapping[str, torch.Tensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))


def _musubi(folder: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Its modules of the model and of the LoRA network."""
    source = Path(folder) / "src"
    if not (source / "musubi_tuner").is_dir():
        raise ValueError(f"{folder} holds no src/musubi_tuner; name the folder of a checkout of musubi-tuner.")
    if str(source) not in sys.path:
        sys.path.append(str(source))
    importlib.import_module("musubi_tuner.wan")
    # the package imports its text encoder, which needs packages that neither the model nor we do
    package = types.ModuleType("musubi_tuner.wan.modules")
    package.__path__ = [str(source / "musubi_tuner" / "wan" / "modules")]
    sys.modules.setdefault(package.__name__, package)
    return tuple(importlib.import_module(f"musubi_tuner.{name}") for name in ("wan.modules.model", "networks.lora_wan"))


def _own_attention(folder: Path):
    return importlib.import_module("musubi_tuner.wan.modules.attention").flash_attention


def _rope_table(model: types.ModuleType, width: int) -> torch.Tensor:
    """As its constructor makes it: frames get what rows and columns leave of a head's width."""
    sides = 2 * (width // 6)
    return torch.cat([model.rope_params(1024, each) for each in (width - 2 * sides, sides, sides)], dim=1)


def _fp32_attention(qkv: list[torch.Tensor], **_options) -> torch.Tensor:
    """(B, L, heads, width of a head) of each to the same, with PyTorch's attention; empties the list, as theirs."""
    q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
    qkv.clear()
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
