"""A LoRA under the names of another reader: ComfyUI's, diffusers', or kohya's, which musubi-tuner has, too."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..base.errors import UserError
from .forms import COMFYUI, DIFFUSERS, FORMATS
from .keys import PREFIX, check_complete, modules_of, normalize
from .names import comfyui_names, diffusers_name

PLAIN = frozenset(("lora_A.weight", "lora_B.weight", "alpha"))
"""The matrices of a module of a plain LoRA."""

_KOHYA_NAMES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def converted(state: Mapping[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """The same LoRA, of any trainer, under the keys of one of FORMATS.

    diffusers takes alpha / rank as 1 where a file's header does not say otherwise (loaders/lora_pipeline.py), so that
    it is multiplied into B there.

    Raises:
        UserError: the LoRA is incomplete, or has what the other form has no names for.
    """
    if form not in FORMATS:
        raise UserError(f"The form is {form!r}; choose one of {', '.join(FORMATS)}.")
    state = normalize(state)
    check_complete(state)
    if form == COMFYUI:
        return dict(state)
    modules = modules_of(state)
    foreign = next((name for name, matrices in modules.items() if "" in matrices), "")
    if foreign:
        raise UserError(f"The LoRA has {foreign}, for which no other name is known; it can only be kept as it is.")
    return _diffusers(modules) if form == DIFFUSERS else _kohya(modules)


def scaled_halves(name: str, matrices: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) of a module of a plain LoRA, alpha / rank multiplied into B; both as stored where
    that is 1, else B in fp32.

    Raises:
        UserError: it is something else.
    """
    if not {"lora_A.weight", "lora_B.weight"} <= matrices.keys() <= PLAIN:
        other = sorted(matrices.keys() - PLAIN) or sorted(matrices)
        raise UserError(f"{name} is not that of a plain LoRA (it has {other[0]}); only plain LoRAs can be converted "
                        "to diffusers' names or merged.")
    a, b = matrices["lora_A.weight"].flatten(1), matrices["lora_B.weight"].flatten(1)
    scale = float(matrices["alpha"]) / len(a) if "alpha" in matrices else 1.0
    return a, b if scale == 1 else b.float() * scale


def _diffusers(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found = {}
    for name, matrices in modules.items():
        a, b = scaled_halves(name, matrices)
        found[f"transformer.{diffusers_name(name)}.lora_A.weight"] = a
        found[f"transformer.{diffusers_name(name)}.lora_B.weight"] = b.to(a.dtype)
    return found


def _kohya(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{comfyui_names(name.removeprefix(PREFIX))[1]}.{_KOHYA_NAMES.get(matrix, matrix)}": tensor
            for name, matrices in modules.items() for matrix, tensor in matrices.items()}
