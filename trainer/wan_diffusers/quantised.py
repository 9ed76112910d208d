"""Weights in 8 and 4 bits, by torchao and bitsandbytes: which there are, and their values.

A quantised weight is dequantised for each product. That is what these packages do for weights alone, and the gradient
of the input is then that of a plain matrix.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from ..base.errors import UserError

NONE, FP8, INT8, NF4 = QUANTIZATIONS = ("none", "fp8", "int8", "nf4")

_PACKAGES = {FP8: "torchao", INT8: "torchao", NF4: "bitsandbytes"}

def check(quantization: str) -> None:
    """Raises UserError where there is no such quantisation, here or at all."""
    if quantization not in QUANTIZATIONS:
        raise UserError(f"quantization is {quantization!r}; choose one of {', '.join(QUANTIZATIONS)}.")
    package = _PACKAGES.get(quantization)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"quantization is {quantization}, for which the package {package} is not installed here; "
                        f"install it (pip install {package}), or set quantization to none.")


def quantise(block: nn.Module, quantization: str, device: torch.device, dtype: torch.dtype) -> None:
    """Put a block on the device and quantise its Linears, as diffusers does it when it loads a folder.

    What lies outside blocks is little, and ComfyUI's files in 8 bits keep it too.

    Args:
        quantization: not none.
        dtype: in which is computed.
    """
    if quantization == NF4:
        _put_in_4_bits(block, dtype)
        block.to(device)
        return
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(block.to(device), Float8WeightOnlyConfig() if quantization == FP8 else Int8WeightOnlyConfig())


def _put_in_4_bits(block: nn.Module, dtype: torch.dtype) -> None:
    """Layers that become quantised when they are put on a device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, linear in list(block.named_modules()):
        if isinstance(linear, nn.Linear):
            layer = Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None,
                               compute_dtype=dtype, quant_type="nf4", device="meta")
            layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            layer.bias = linear.bias
            parent, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(parent), leaf, layer.train(linear.training))


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is a tensor of torch's own, of one number for each value."""
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.is_floating_point()


def plain(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a weight (out, in) in a dtype; the weight itself where these are they."""
    if is_plain(weight):
        return weight if weight.dtype == dtype else weight.to(dtype)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).to(dtype)
    return weight.dequantize().to(dtype)


def num_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes on its device: of the numbers it is stored in, scales included."""
    if hasattr(tensor, "__tensor_flatten__"):  # of torchao, or a part of a tensor that several processes share
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return sum(num_bytes(part) for part in parts if isinstance(part, torch.Tensor))  # others say where it lies
    state = getattr(tensor, "quant_state", None)
    scales = 0 if state is None else state.absmax.nbytes
    return tensor.numel() * tensor.element_size() + scales
