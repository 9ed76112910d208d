"""A short name for the content of a model's weights, without reading all of them."""

from __future__ import annotations

import hashlib

import torch

from ...trainer.base.errors import content_hash

SAMPLES = 256
"""Values read from each tensor. A fine-tune or another precision changes every tensor, so few are enough."""


def fingerprint(patcher) -> str:
    """A hash, 64 hex digits, of a ModelPatcher's weights and of the patches (LoRAs) on it.

    It covers names, shapes, dtypes and evenly spread values of each tensor.
    """
    digest = hashlib.sha256()
    backup = getattr(patcher, "backup", {})
    for name, value in sorted(patcher.model.state_dict().items()):
        if name in backup:  # a LoRA is merged into this weight; hash the one without it
            value = getattr(backup[name], "weight", value)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_sample(value))
    patches = {key: [_describe(patch) for patch in value] for key, value in sorted(patcher.patches.items())}
    return content_hash(digest.hexdigest(), patches)


def _sample(value: torch.Tensor) -> bytes:
    with torch.no_grad():
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            value = getattr(value, "_qdata", value).as_subclass(torch.Tensor)
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        picked = flat[::step][:SAMPLES].to("cpu", copy=True).contiguous()
        return picked.view(torch.uint8).numpy().tobytes()


def _describe(patch: tuple) -> list:
    strength, weights = patch[0], patch[1]
    inner = getattr(weights, "weights", weights)
    tensors = inner if isinstance(inner, (tuple, list)) else (inner,)
    return [strength] + [_sample(tensor).hex() for tensor in tensors if isinstance(tensor, torch.Tensor)]
