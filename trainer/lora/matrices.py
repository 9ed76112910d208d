"""The matrices of one module of a LoRA, by our names for them: whether they are sound and whole, and their size."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..base.errors import UserError

_SUFFIX = re.compile(
    r"(?P<module>.+)\.lora_(?P<half>A|B|down|up)(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?"
    r"|(?P<old>.+?)(?:\.processor)?[._]lora(?:_linear_layer)?\.(?P<direction>down|up)\.weight"
    r"|(?P<dora>.+)\.lora_magnitude_vector(?:\.(?!weight$)(?P<dora_adapter>[^.]+))?(?:\.weight)?"
    r"|(?P<other>.+)\.(?P<kept>alpha|dora_scale|diff|diff_b|set_weight|w_norm|b_norm|reshape_weight|lora_mid\.weight"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[ab][12]\.weight)")
"""The names of the matrices that ComfyUI's loader reads (comfy/weight_adapter/*.py, comfy/lora.py), and PEFT's."""

_HALVES = {"A": "lora_A.weight", "down": "lora_A.weight", "B": "lora_B.weight", "up": "lora_B.weight"}

_PAIRS = (
    ("lora_A.weight", "lora_B.weight"), ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"),
    ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"), ("hada_w1_a", "hada_w2_a"), ("hada_t1", "hada_t2"),
    ("a1.weight", "a2.weight"), ("b1.weight", "b2.weight"), ("a1.weight", "b1.weight"),
)
"""Matrices of a module that are useless without each other."""

SETTINGS = ("alpha", "reshape_weight", "rescale")
"""What changes nothing by itself."""


def split(key: str) -> tuple[str, str, str]:
    """(module, our name of the matrix such as `lora_A.weight`, PEFT's adapter name) of a key; (key, "", "") if it is
    not understood."""
    found = _SUFFIX.fullmatch(key)
    if not found:
        return key, "", ""
    if found["module"]:
        return found["module"], _HALVES[found["half"]], found["adapter"] or ""
    if found["old"]:
        return found["old"], _HALVES[found["direction"]], ""
    if found["dora"]:
        return found["dora"], "lora_magnitude_vector", found["dora_adapter"] or ""
    return found["other"], found["kept"], ""


def missing_half(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of a matrix that lacks the other one of its pair; "" if the module is whole."""
    for pair in (*_PAIRS, _lokr_factors(tensors)):
        halves = set(pair) & tensors.keys()
        if len(halves) == 1:
            return halves.pop()
    return ""


def check_sound(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Check that every value can be computed with.

    Raises:
        UserError: a matrix is empty (rank 0) or not finite, or an alpha is not one number; the module is named.
    """
    for module, tensors in modules.items():
        for name, tensor in tensors.items():
            fault = _fault(name, tensor)
            if fault:
                raise UserError(f"The LoRA is damaged: {module} {fault}; train or download it again.")


def _fault(name: str, tensor: torch.Tensor) -> str:
    if not tensor.numel():
        return f"has rank 0 ({name} is {' x '.join(map(str, tensor.shape))})"
    if name == "alpha" and tensor.numel() != 1:
        return f"has an alpha of {tensor.numel()} numbers"
    if tensor.is_floating_point():
        values = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # fp8 cannot be asked
        if not torch.isfinite(values).all():
            return f"has values that are not finite in {name or 'it'}"
    return ""


def size(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """(out_features, in_features) of the weight that a module changes, or None where its matrices do not tell."""
    if "lora_A.weight" in tensors and "lora_B.weight" in tensors:
        a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
        return (b.shape[0], a[0].numel()) if a.ndim > 1 and b.ndim > 1 and len(a) == b[0].numel() else None
    if "hada_w1_a" in tensors and "hada_w1_b" in tensors and "hada_t1" not in tensors:
        return tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[-1]
    factors = [_lokr_size(tensors, name) for name in ("lokr_w1", "lokr_w2")]
    if all(factors):
        return factors[0][0] * factors[1][0], factors[0][1] * factors[1][1]
    if "diff" in tensors and tensors["diff"].ndim == 2:
        return tuple(tensors["diff"].shape)
    return None


def _lokr_factors(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """A key that stands for each of the two factors, whether it is one matrix or the product of two."""
    first, second = (f"lokr_{name}" if f"lokr_{name}" in tensors else f"lokr_{name}_a" for name in ("w1", "w2"))
    return first, second


def _lokr_size(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, int] | None:
    """(rows, columns) of one factor, or None for a form that Linears do not have."""
    if name in tensors and tensors[name].ndim == 2:
        return tuple(tensors[name].shape)
    if {f"{name}_a", f"{name}_b"} <= tensors.keys() and "lokr_t2" not in tensors:
        return tensors[f"{name}_a"].shape[0], tensors[f"{name}_b"].shape[1]
    return None
