"""Weights in 8 and 4 bits, by torchao and bitsandbytes: which there are, and their values.

A quantised weight is dequantised for each product. That is what these packages do for weights alone, and the gradient
of the input is then that of a plain matrix.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

from ..base.errors import UserError

NONE, FP8, INT8, NF4 = QUANTIZATIONS = ("none", "fp8", "int8", "nf4")

_PACKAGES = {FP8: "torchao", INT8: "torchao", NF4: "bitsandbytes"}

_KEPT = ("condition_embedder", "patch_embedding", "proj_out")
"""diffusers' names of what lies outside blocks: little, and what ComfyUI's files in 8 bits keep too."""


def check(quantization: str, device: torch.device) -> None:
    """Raises UserError where there is no such quantisation, here or at all."""
    if quantization not in QUANTIZATIONS:
        raise UserError(f"quantization is {quantization!r}; choose one of {', '.join(QUANTIZATIONS)}.")
    package = _PACKAGES.get(quantization)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"quantization is {quantization}, for which the package {package} is not installed here; "
                        f"install it (pip install {package}), or set quantization to none.")
    if quantization == NF4 and device.type == "cpu":
        raise UserError("quantization is nf4, which diffusers makes on a GPU only; take a GPU, or set quantization to "
                        "int8.")


def config_for(quantization: str, dtype: torch.dtype):
    """diffusers' quantization_config; None for none.

    Args:
        dtype: in which is computed.
    """
    if quantization == NONE:
        return None
    from diffusers import BitsAndBytesConfig, TorchAoConfig

    if quantization == NF4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
                                  llm_int8_skip_modules=list(_KEPT))
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Float8WeightOnlyConfig if quantization == FP8 else Int8WeightOnlyConfig
    return TorchAoConfig(kind(), modules_to_not_convert=list(_KEPT))


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is a tensor of torch's own, of one number for each value."""
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point()


def plain(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a weight (out, in) in a dtype; the weight itself where these are they."""
    if is_plain(weight):
        return weight if weight.dtype == dtype else weight.to(dtype)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        functional = importlib.import_module("bitsandbytes.functional")
        return functional.dequantize_4bit(weight.data, state).to(dtype)
    return weight.dequantize().to(dtype)


def num_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes on its device: of the numbers it is stored in, scales included."""
    if hasattr(tensor, "__tensor_flatten__"):  # of torchao, or a part of a tensor that several processes share
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return sum(num_bytes(part) for part in parts if isinstance(part, torch.Tensor))  # others say where it lies
    state = getattr(tensor, "quant_state", None)
    scales = 0 if state is None else state.absmax.nbytes
    return tensor.numel() * tensor.element_size() + scales
