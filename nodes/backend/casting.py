"""A layer's weight as ComfyUI gives it to one computation: moved to the device, dequantised, patched.

What ComfyUI gives is lent: it may lie in a buffer that the next layer overwrites, in memory that another stream
takes back, or in pages of dynamic VRAM that stay pinned until they are given back.
"""

from __future__ import annotations

import copy

import comfy.model_management
import comfy.ops
import torch
from torch import nn

_Plain = comfy.ops.disable_weight_init.Linear


class Cast:
    """A module's weight (out, in) and bias (out,) for one computation, until `give_back`."""

    def __init__(self, module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, lender) -> None:
        self.weight, self.bias = weight, bias
        self._module, self._lender = module, lender

    def keep(self) -> None:
        """Have the weight last over the casts of other modules; the bias does not."""
        if _will_be_overwritten(self._module, self.weight, self._lender):
            self.weight = self.weight.clone()
        elif not (isinstance(self._lender, tuple) and _is_copy_of(self.weight, self._lender[1])):
            return  # what is lent is the weight itself
        self.give_back()

    def give_back(self) -> None:
        """Say that nothing more is computed with what was lent."""
        lender, self._lender = self._lender, None
        comfy.ops.uncast_bias_weight(self._module, self.weight, self.bias, lender)
        self.bias = None


def cast(module: nn.Module, like: torch.Tensor) -> Cast:
    """The weight as a plain tensor, on the device and in the dtype of `like`, with the patches of the user's LoRAs.

    fp8 that older versions scale (`scale_weight`) comes without its scale.
    """
    if hasattr(module, "cast_bias_weight"):  # GGUF layers have this method of their own
        weight, bias = module.cast_bias_weight(like)
        return Cast(module, weight, bias, None)
    held = Cast(module, *comfy.ops.cast_bias_weight(module, like, offloadable=True))
    try:
        held.weight = plain(held.weight, like.dtype)
    except BaseException:
        held.give_back()
        raise
    return held


def moved(module: nn.Module, like: torch.Tensor) -> Cast:
    """The weight as it is stored, on the device of `like`; not for modules that `changes_in_cast`."""
    return Cast(module, *comfy.ops.cast_bias_weight(
        module, None, module.weight.dtype, like.device, like.dtype, offloadable=True))


def layer_with(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """The same layer over another weight and bias; its own forward finds nothing left to move."""
    layer = copy.copy(module)
    for name in ("forward", "_v", "_prefetch"):
        layer.__dict__.pop(name, None)
    layer.__dict__["_parameters"] = {**module._parameters, "weight": weight, "bias": bias}
    return layer


def changes_in_cast(module: nn.Module) -> bool:
    """Whether the weight that is computed with is not the one that is stored: patched, or in GGUF form."""
    names = ("weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function")
    return hasattr(module, "cast_bias_weight") or any(getattr(module, name, None) for name in names)


def only_casts(module: nn.Module) -> bool:
    """Whether the module's own forward is a `cast`, then torch.nn.functional.linear, and nothing else."""
    if hasattr(module, "is_ggml_quantized"):
        return module.is_ggml_quantized()  # those of its layers that are not go ComfyUI's way
    if hasattr(module, "_full_precision_mm"):
        return _dequantises(module)
    kind = type(module)
    return (kind.forward is _Plain.forward
            and kind.forward_comfy_cast_weights is _Plain.forward_comfy_cast_weights)


def layout_of(module: nn.Module) -> str:
    """How the weight is stored, as users know it: "nvfp4", "float8_e4m3fn", "bfloat16", "Q4_K"."""
    kind = getattr(module.weight, "tensor_type", None)
    if kind is not None:
        return getattr(kind, "name", str(kind))
    name = getattr(module, "quant_format", None) or getattr(module, "layout_type", None)
    if name is None:
        return str(module.weight.dtype).removeprefix("torch.")
    is_rotated = getattr(getattr(module.weight, "_params", None), "convrot", False)
    return f"{name}{' with ConvRot' if is_rotated else ''}"


def plain(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a weight of any layout as a tensor of torch's own."""
    if weight.dtype != dtype:
        weight = weight.to(dtype)  # first, so that the values are made in it, as ComfyUI does
    return weight if type(weight).dequantize is torch.Tensor.dequantize else weight.dequantize()


def _dequantises(module: nn.Module) -> bool:
    """Whether a layer of a quantised checkpoint computes with its dequantised weight, as others do."""
    if getattr(module, "pre_quant_scale", None) is not None:
        return False
    if module.weight_function or module.bias_function or getattr(module, "layout_type", None) is None:
        return True
    algorithm = comfy.ops.QUANT_ALGOS.get(getattr(module, "quant_format", None), {})
    is_full = module._full_precision_mm or getattr(module, "comfy_force_cast_weights", False)
    return is_full and algorithm.get("quantize_input", True)  # the others have a product of their own either way


def _storage(weight: torch.Tensor) -> int:
    return getattr(weight, "_qdata", weight).untyped_storage()._cdata


def _is_copy_of(weight: torch.Tensor, lent) -> bool:
    return isinstance(lent, torch.Tensor) and _storage(weight) != _storage(lent)


def _will_be_overwritten(module: nn.Module, weight: torch.Tensor, lender) -> bool:
    """Whether a weight lies in a buffer that ComfyUI has for each of its streams (0.11.1 and newer)."""
    buffers = getattr(comfy.model_management, "STREAM_CAST_BUFFERS", {}).values()
    if any(_storage(buffer) == _storage(weight) for buffer in buffers):
        return True
    # dynamic VRAM: what found no page of its own went through the stream's buffer
    return hasattr(module, "_v") and isinstance(lender, tuple) and lender[0] is not None and lender[1] is None
