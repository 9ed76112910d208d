"""Wan2.1's models in their full sizes with random weights, drawn on the device, as ComfyUI's own loaders give them."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import torch

from ..nodes.backend.normal import normal_view
from ..tests.support import tools
from ..tests.world import random_models

DITS = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40},
    "toy": {"dim": 256, "ffn_dim": 512, "layers": 2},
}
"""Transformers by name: Wan-Video/Wan2.1, wan/configs/wan_t2v_1_3B.py and wan_t2v_14B.py."""
WEIGHTS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn, "fp8_scaled": torch.bfloat16}
"""Kinds of weights, and the dtype in which they are drawn. "fp8" is what Load Diffusion Model calls fp8_e4m3fn,
"fp8_scaled" the form of the files with a scale for each matrix."""
FP8 = ("fp8", "fp8_scaled")
VAE_DIM = 96
UMT5_XXL = {"dim": 4096, "head_dim": 64, "ffn_dim": 10240, "heads": 64, "layers": 24, "vocabulary": 256384}
"""google/umt5-xxl, config.json."""


class Unfit(Exception):
    """The weights are not all on the device."""


def dit_weights(name: str, dtype: torch.dtype, device: torch.device | str) -> random_models.Weights:
    """The tensors of a transformer of `DITS`, in RAM."""
    weights = random_models.Weights(0, dtype, device)
    return random_models.dit_weights(**DITS[name], in_dim=16, text_dim=4096, weights=weights)


def load_dit(name: str, weights: str, **how):
    """A MODEL of `DITS` with weights of a kind of `WEIGHTS`.

    Args:
        how: further arguments of ComfyUI's loader, which it gives itself where it wants a copy of the model.
    """
    dtype = WEIGHTS[weights]
    state = dit_weights(name, dtype, comfy.model_management.get_torch_device()).tensors
    options = {"dtype": dtype}
    if weights == "fp8_scaled":
        state, options = tools.scaled_to_fp8(state), {}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options=options, **how)
    model.cached_patcher_init = (load_dit, (name, weights))  # as newer versions' loaders of files have it
    return model


def load_vae(dim: int = VAE_DIM):
    """A VAE, of real size unless `dim` says otherwise."""
    device = comfy.model_management.get_torch_device()
    weights = random_models.vae_weights(dim, random_models.Weights(0, torch.float32, device))
    with torch.inference_mode():
        return comfy.sd.VAE(sd=weights.tensors)


def load_clip():
    """A CLIP with a text encoder of the size of UMT5-XXL in bf16 (11 GB), for which words are their letters."""
    device = comfy.model_management.get_torch_device()
    weights = random_models.umt5_weights(**UMT5_XXL, weights=random_models.Weights(0, torch.bfloat16, device))
    with torch.inference_mode():
        return comfy.sd.load_text_encoder_state_dicts([weights.tensors], clip_type=comfy.sd.CLIPType.WAN)


def shared(model) -> dict[str, torch.Tensor]:
    """The weights of a MODEL's network on its device, by their names in Wan's files, for others to use as well.

    Raises:
        Unfit: ComfyUI could not load them all.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    state = {name: normal_view(tensor) for name, tensor in model.model.diffusion_model.state_dict().items()}
    outside = [name for name, tensor in state.items() if tensor.device.type != model.load_device.type]
    if outside:
        raise Unfit(f"{len(outside)} tensors stayed in RAM, such as {outside[0]}")
    return state
