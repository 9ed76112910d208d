"""What of a LoRA changes a MODEL: ComfyUI's own loader decides, and is asked again for names that it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch

from ...trainer.lora import keys
from ...trainer.lora.made_for import describe, describe_model
from ...trainer.lora.matrices import SETTINGS, check_sound, missing_half
from .denoiser import linear_sizes

_WHOLE_WEIGHTS = ("diff", "diff_b", "set_weight", "w_norm", "b_norm")
"""Matrices that need no other one."""

NAMED = 4
"""Modules that a sentence names; it counts the others."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A LoRA as a MODEL takes it."""

    patches: dict
    """For ModelPatcher.add_patches; each has the shape of its weight."""
    fit: keys.Fit
    """A module is matched if all its matrices change the model."""
    notes: tuple[str, ...]
    """A sentence about each kind of module that is not matched."""


def read(model, lora: Mapping[str, torch.Tensor]) -> Reading:
    """What ComfyUI's loader makes of a LoRA, and besides of the modules whose names it does not know.

    Args:
        model: a MODEL.
        lora: with the keys of any trainer.

    Raises:
        UserError: it is no LoRA, holds values that cannot be computed with, or changes nothing of this model.
    """
    own = {key: value.detach() for key, value in lora.items()}  # other objects, by which what was read is told
    state = keys.normalize(own)
    keys.check_is_lora(state)
    modules = keys.modules_of(state)
    check_sound(modules)
    halves = {module: tensors for module, tensors in modules.items() if missing_half(tensors)}
    useless = {id(tensor) for tensors in halves.values() for name, tensor in tensors.items()
               if name not in _WHOLE_WEIGHTS}
    patches, misfits = _fitting(model, _patches(model, own, state, useless))
    taken, misshapen = set(_tensors(patches)), set(_tensors(misfits))
    fit = _fit(modules, taken, misshapen)
    if not patches:
        raise keys.does_not_fit(state, linear_sizes(model), fit)
    return Reading(patches, fit, tuple(_notes(model, modules, fit, halves, taken)))


def _patches(model, own: dict, state: dict, useless: set[int]) -> dict:
    """{weight: patch}: all that ComfyUI reads under the file's keys, then what it reads under normalized ones."""
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    whole = {key: value for key, value in own.items() if id(value) not in useless}
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(whole), targets, log_missing=False)
    known = set(_tensors(patches)) | useless
    rest = {key: value for key, value in state.items() if id(value) not in known}
    return {**comfy.lora.load_lora(rest, targets, log_missing=False), **patches}


def _fitting(model, patches: dict) -> tuple[dict, dict]:
    """The patches that have the shape of their weight, and those that have another."""
    fitting, misfits = {}, {}
    weights = model.model.state_dict().keys()
    for target, patch in patches.items():
        key = target if isinstance(target, str) else target[0]
        if key in weights:
            fits = target != key or _fits(patch, comfy.utils.get_attr(model.model, key).shape, key)
            (fitting if fits else misfits)[target] = patch
    return fitting, misfits


def _fits(patch, shape: torch.Size, key: str) -> bool:
    """Whether ComfyUI can put a patch on a weight of this shape: asked of its own code, on tensors without values."""
    name = getattr(patch, "name", "")
    if name in ("oft", "boft"):  # decide by their values
        return patch.weights[0].shape[-3] * patch.weights[0].shape[-2] == shape[0]
    if not name:
        return tuple(patch[1][0].shape) == tuple(shape)
    if name == "lora" and patch.weights[5] is None and patch.weights[3] is None:
        up, down = patch.weights[:2]  # ComfyUI would log each that does not fit as an error
        if up.ndim < 2 or down.ndim < 2 or up[0].numel() != len(down) or len(up) * down[0].numel() != shape.numel():
            return False
    reached = []

    def merging(difference: torch.Tensor) -> torch.Tensor:
        reached.append(difference)
        return difference

    comfy.lora.calculate_weight([(1.0, patch, 1.0, None, merging)], torch.empty(shape, device="meta"), key)
    return bool(reached)


def _tensors(patches: dict) -> Iterator[int]:
    """The ids of all tensors in patches."""
    for patch in patches.values():
        for value in patch.weights if hasattr(patch, "weights") else patch[1]:
            if isinstance(value, torch.Tensor):
                yield id(value)


def _fit(modules: Mapping[str, Mapping[str, torch.Tensor]], taken: set[int], misshapen: set[int]) -> keys.Fit:
    groups: dict[str, list[str]] = {"matched": [], "unknown": [], "misshapen": []}
    for module, tensors in modules.items():
        needed = {id(tensor) for name, tensor in tensors.items() if name not in SETTINGS}
        group = "matched" if needed and needed <= taken else "misshapen" if needed & misshapen else "unknown"
        groups[group].append(module)
    return keys.Fit(*map(tuple, groups.values()))


def _notes(
    model, modules: Mapping[str, Mapping[str, torch.Tensor]], fit: keys.Fit, halves: Mapping, taken: set[int]
) -> Iterator[str]:
    partly = [module for module in (*fit.unknown, *fit.misshapen)
              if any(id(tensor) in taken for tensor in modules[module].values())]
    rest = [module for module in fit.unknown if module not in halves and module not in partly]
    for names, why in ((rest, "The model does not have"), (fit.misshapen, "The model has another shape of"),
                       (list(halves), "One of two matrices is missing in"), (partly, "Only a part is applied of")):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"{why} {', '.join(names[:NAMED])}{more}."
    made_for, is_one = describe(modules), describe_model(linear_sizes(model))
    if (rest or fit.misshapen) and made_for != is_one:
        yield f"The LoRA was made for {made_for}, the model is {is_one}."
