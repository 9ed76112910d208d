"""What memory there is for training on a device that this process has for itself, and what of a transformer counts."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..memory.choice import Space
from ..memory.sizes import ModelSize
from ..model.conditions import CLIP_VISION_ROWS
from .quantised import is_plain, num_bytes

SHARE_OF_RAM = 0.5
"""Of the RAM that is free, at most, in which inputs of blocks wait: pinned RAM is lost to all other programs."""


def model_size(transformer: nn.Module, compute_dtype: torch.dtype) -> ModelSize:
    """What of a transformer counts for memory.

    Outside blocks diffusers computes the head in fp32, for a few more bytes than ComfyUI does; they are free again
    before a block's backward takes more.

    Args:
        compute_dtype: of the activations.
    """
    config, block = transformer.config, transformer.blocks[0]
    of_patch = math.prod(config.patch_size)
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    images = 0 if config.image_dim is None else 1 if config.pos_embed_seq_len is None else 2
    return ModelSize(
        dim=config.num_attention_heads * config.attention_head_dim, ffn_dim=config.ffn_dim,
        heads=config.num_attention_heads, blocks=config.num_layers, weights=_stored(transformer),
        stored=_stored(block), value=compute_dtype.itemsize,
        block_values=sum(linear.in_features * linear.out_features for linear in linears),
        are_cast=not all(is_plain(linear.weight) and linear.weight.dtype == compute_dtype for linear in linears),
        latent_values=config.out_channels * of_patch,
        values_beside=(config.in_channels - config.out_channels) * of_patch, image_rows=images * CLIP_VISION_ROWS)


def space(transformer: nn.Module, device: torch.device) -> Space:
    """What the device of a transformer has for its training."""
    import psutil

    ram = psutil.virtual_memory().available
    ours = sum(num_bytes(value) for value in _tensors(transformer) if value.device == device)
    if device.type in ("cpu", "mps"):
        return Space(free=ram + ours, ram=0, offloads=False)
    driver = getattr(torch, device.type)
    free = driver.mem_get_info(device)[0] + driver.memory_reserved(device) - driver.memory_allocated(device)
    return Space(free=free + ours, ram=int(SHARE_OF_RAM * ram), offloads=False)


def make_room(device: torch.device) -> None:
    """Give what PyTorch keeps for later back to the device."""
    if device.type not in ("cpu", "mps"):
        getattr(torch, device.type).empty_cache()


def _stored(module: nn.Module) -> int:
    return sum(num_bytes(value) for value in _tensors(module))


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
