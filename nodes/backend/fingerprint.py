"""A short name for what a model computes, without reading all of its weights."""

from __future__ import annotations

import hashlib

import torch

from ...trainer.base.errors import content_hash
from ...trainer.base.tensors import sampled
from .described import described


def fingerprint(patcher, **others: object) -> str:
    """A hash, 64 hex digits, of a ModelPatcher's weights and of what is put on them: patches (LoRAs), injections.

    It covers names, shapes, dtypes and evenly spread values of each tensor.

    Args:
        others: JSON of what else changes the computation, by name; empty where nothing does.
    """
    patches = {key: [_describe(patch) for patch in value] for key, value in sorted(patcher.patches.items())}
    return content_hash(of_weights(patcher), patches, *_beyond(patcher, others))


def of_weights(patcher) -> str:
    """The same of the weights alone, without what is put on them."""
    digest = hashlib.sha256()
    backup = getattr(patcher, "backup", {})
    for name, value in sorted(patcher.model.state_dict().items()):
        if name in backup:  # a LoRA is merged into this weight; hash the one without it
            value = getattr(backup[name], "weight", value)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(sampled(value))
    return digest.hexdigest()


def _describe(patch: tuple) -> list:
    strength, weights = patch[0], patch[1]
    return [strength] + [sampled(tensor).hex() for tensor in _held(weights) if isinstance(tensor, torch.Tensor)]


def _held(weights: object) -> tuple | list:
    inner = getattr(weights, "weights", weights)
    return inner if isinstance(inner, (tuple, list)) else (inner,)


def _beyond(patcher, others: dict[str, object]) -> list:
    """What tells models apart that the rest of the hash takes for the same; empty for plain ones and most LoRAs.

    So the names of models, and with them runs and caches, from when only the rest was hashed stay valid.
    """
    model = patcher.model
    parts = {
        "patches": {key: found for key, value in sorted(patcher.patches.items())
                    if any(found := [_rest(patch, model) for patch in value])},
        "injections": {key: [described(injection.inject, model) for injection in injections]
                       for key, injections in getattr(patcher, "injections", {}).items()},
        "weight wrappers": described(getattr(patcher, "weight_wrapper_patches", {}), model),
        **others,
    }
    return [[name, part] for name, part in parts.items() if part]


def _rest(patch: tuple, model: torch.nn.Module) -> list:
    """What `_describe` leaves out: nested tensors, an alpha that is not the rank, and where and how it is applied."""
    _, weights, strength_model, offset, function = patch
    held = _held(weights)
    sizes = {size for each in held if isinstance(each, torch.Tensor) for size in each.shape}
    rest = [described(each, model) for each in held
            if isinstance(each, (tuple, list)) or (isinstance(each, (int, float)) and each not in sizes)]
    rest += [["strength of the model", strength_model]] if strength_model != 1 else []
    return rest + [described(each, model) for each in (offset, function) if each is not None]
