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
    """The weight as it is stored, on the device of `like`; for modules without patches."""
    return Cast(module, *comfy.ops.cast_bias_weight(
        module, None, module.weight.dtype, like.device, like.dtype, offloadable=True))


def layer_with(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """The same layer over another weight and bias; its own forward finds nothing left to move."""
    layer = copy.copy(module)
    for name in ("forward", "_v", "_prefetch"):
        layer.__dict__.pop(name, None)
    layer.__dict__["_parameters"] = {**module._parameters, "weight": weight, "bias": bias}
    return layer


def is_patched(module: nn.Module) -> bool:
    """Whether ComfyUI changes the weight each time that it is cast."""
    names = ("weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function")
    return any(getattr(module, name, None) for name in names)


def only_casts(module: nn.Module) -> bool:
    """Whether the module's own forward is a `cast`, then torch.nn.functional.linear, and nothing else."""
    kind = type(module)
    if hasattr(module, "is_ggml_quantized"):
        return module.is_ggml_quantized()  # those of its layers that are not go ComfyUI's way
    return (kind.forward is _Plain.forward
            and kind.forward_comfy_cast_weights is _Plain.forward_comfy_cast_weights)


def plain(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a weight of any layout as a tensor of torch's own."""
    if type(weight).dequantize is not torch.Tensor.dequantize:
        weight = weight.dequantize()
    return weight.to(dtype)


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
