"""What memory there is for training, and making room in it before anything is put there.

Right for ComfyUI's classic management, which moves whole weights, for dynamic VRAM, which evicts pages of them as
others need room, and for a CPU, where nothing can be moved away.
"""

from __future__ import annotations

import math

import comfy.model_management
import torch

from ...trainer.memory.choice import Space
from ...trainer.memory.sizes import ModelSize
from ...trainer.model.conditions import CLIP_VISION_ROWS
from . import frozen, streaming

ALL = 1e30
"""Bytes; more than any device has, so that ComfyUI unloads every other model."""

SHARE_OF_RAM = 0.5
"""Of the RAM that is free, at most, in which inputs of blocks wait: pinned RAM is lost to all other programs."""


def model_size(
    patcher, network: torch.nn.Module, block: torch.nn.Module, compute_dtype: torch.dtype, copies: int = 0
) -> ModelSize:
    """What of a MODEL counts for memory.

    Args:
        block: one of the network's.
        compute_dtype: of the activations.
        copies: bytes of copies of its weights.
    """
    of_patch = math.prod(network.patch_size)
    image = getattr(network, "img_emb", None)
    positions = getattr(image, "emb_pos", None)
    linears = [module for module in block.modules() if frozen.is_linear(module)]
    weights = [linear.weight for linear in linears if isinstance(linear.weight, torch.Tensor)]
    are_plain = all(type(weight) in (torch.nn.Parameter, torch.Tensor) and weight.dtype == compute_dtype
                    for weight in weights)
    return ModelSize(
        dim=network.dim, ffn_dim=network.ffn_dim, heads=network.num_heads, blocks=len(network.blocks),
        weights=patcher.model_size(), value=compute_dtype.itemsize, copies=copies,
        stored=int(comfy.model_management.module_size(block)),
        block_values=sum(linear.in_features * linear.out_features for linear in linears),
        are_cast=not are_plain or len(weights) < len(linears),
        latent_values=network.out_dim * of_patch, values_beside=(network.in_dim - network.out_dim) * of_patch,
        blocks_beside=len(getattr(network, "vace_blocks", ())),
        image_rows=0 if image is None else CLIP_VISION_ROWS if positions is None else positions.shape[1])


def space(patcher) -> Space:
    """What the device of a MODEL has for its training, once all that can leave it has left."""
    management, device = comfy.model_management, patcher.load_device
    free = int(management.get_free_memory(device))
    if _is_ram(device):
        # the weights are there already, and other models stay where they are
        return Space(free=free + patcher.model_size(), ram=0, offloads=False)
    ours, theirs = _loaded(patcher)
    is_unlisted = not ours and patcher.current_loaded_device() == device
    leaving = ours + [loaded for loaded in theirs if loaded.model.offload_device != device]
    held = sum(loaded.model_loaded_memory() for loaded in leaving) + (patcher.model_size() if is_unlisted else 0)
    return Space(
        free=int(free + held - management.extra_reserved_memory()),
        ram=int(SHARE_OF_RAM * management.get_free_memory(torch.device("cpu"))),
        offloads=management.vram_state != management.VRAMState.HIGH_VRAM,
        streams=management.NUM_STREAMS if hasattr(management, "STREAM_CAST_BUFFERS") else 0,
        fetches_blocks=is_dynamic(patcher) and streaming.FETCHES_BLOCKS and management.NUM_STREAMS > 0)


def is_dynamic(patcher) -> bool:
    """Whether ComfyUI keeps the weights of a MODEL in dynamic VRAM (comfy-aimdo)."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def make_room(patcher, memory: int) -> None:
    """Move every other model off the device of a MODEL, and of its own weights as many as leave `memory` bytes free."""
    management, device = comfy.model_management, patcher.load_device
    with torch.inference_mode():  # as in sampling
        management.free_memory(ALL, device, _loaded(patcher)[0])
        if not _is_ram(device):
            management.free_memory(memory + management.extra_reserved_memory(), device)


def _loaded(patcher) -> tuple[list, list]:
    """ComfyUI's records of what is loaded: clones of this MODEL, and others on the same device."""
    known = [loaded for loaded in comfy.model_management.current_loaded_models
             if loaded.model is not None and loaded.device == patcher.load_device]
    ours = [loaded for loaded in known if loaded.model.is_clone(patcher)]
    return ours, [loaded for loaded in known if loaded not in ours]


def _is_ram(device: torch.device) -> bool:
    return device.type in ("cpu", "mps")
