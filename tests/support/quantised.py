"""Wan files in the quantised layouts that ComfyUI reads, and a stand-in for ComfyUI-GGUF's layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

LAYOUTS: Mapping[str, tuple[str, dict]] = {
    "fp8_e4m3": ("float8_e4m3fn", {}),
    "fp8_e5m2": ("float8_e5m2", {}),
    "nvfp4": ("nvfp4", {}),
    "mxfp8": ("mxfp8", {}),
    "int8": ("int8_tensorwise", {}),
    "int8 ConvRot": ("int8_tensorwise", {"convrot": True, "per_channel": True}),
    "W4A4": ("convrot_w4a4", {}),
    "W4A4 computed in int8": ("convrot_w4a4", {"linear_dtype": "int8"}),
    "W4A8": ("asym_w4a8_int8", {}),
}
"""By their usual names: ComfyUI's name of the format, and options of its quantisation."""


def quantised(weight: torch.Tensor, layout: str):
    """A QuantizedTensor of ComfyUI's."""
    import comfy.ops

    name, options = LAYOUTS[layout]
    kind = comfy.ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    scale = {} if name in ("convrot_w4a4", "asym_w4a8_int8") else {"scale": "recalculate"}
    return comfy.ops.QuantizedTensor.from_float(weight, kind, **scale, **options)


def entries(weight: torch.Tensor, key: str, layout: str) -> dict[str, torch.Tensor]:
    """What a file holds for a weight named `key`, which ends in .weight."""
    name, options = LAYOUTS[layout]
    settings = {"format": name} | {key: value for key, value in options.items() if key != "per_channel"}
    marker = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    stored = quantised(weight, layout).state_dict(key)
    return stored | {f"{key.removesuffix('.weight')}.comfy_quant": marker}


def quantise_file(path: Path, layout: str) -> tuple[Path, Path]:
    """Two files of a transformer: its blocks' Linears quantised, and the plain values that this leaves of them."""
    stored, left = {}, {}
    for key, value in load_file(path).items():
        if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2:
            stored |= entries(value, key, layout)
            left[key] = quantised(value, layout).dequantize().to(value.dtype).contiguous()
        else:
            stored[key] = left[key] = value
    paths = path.with_stem(f"quantised {layout}"), path.with_stem(f"plain {layout}")
    for file, tensors in zip(paths, (stored, left), strict=True):
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return paths


GROUP = 32
"""Values that share a scale in Q8_0."""


class GgufTensor(torch.Tensor):
    """Bytes of a quantised weight that shows the shape of its values, as ComfyUI-GGUF's GGMLTensor does."""

    tensor_type: str | None = None
    tensor_shape: torch.Size | None = None

    @property
    def shape(self) -> torch.Size:
        return self.tensor_shape or self.size()

    def to(self, *args, **kwargs) -> GgufTensor:
        return _named(super().to(*args, **kwargs), self.tensor_type, self.tensor_shape)

    def clone(self, *_args, **_kwargs) -> GgufTensor:
        return self

    def detach(self) -> GgufTensor:
        return self


def _named(tensor: torch.Tensor, kind: str | None, shape: torch.Size | None) -> GgufTensor:
    tensor = tensor.as_subclass(GgufTensor)
    tensor.tensor_type, tensor.tensor_shape = kind, shape
    return tensor


def q8_0(weight: torch.Tensor) -> GgufTensor:
    """A weight (out, in) in GGUF's Q8_0: for each 32 values a scale in fp16 and 32 numbers of a byte."""
    groups = weight.float().reshape(-1, GROUP)
    scales = (groups.abs().amax(1, keepdim=True) / 127).half()
    numbers = (groups / scales.float()).round().to(torch.int8)
    data = torch.cat([scales.view(torch.uint8), numbers.view(torch.uint8)], dim=1).reshape(weight.shape[0], -1)
    return _named(data, "Q8_0", weight.shape)


def values(tensor: GgufTensor) -> torch.Tensor:
    """The fp32 values of `q8_0`."""
    groups = tensor.as_subclass(torch.Tensor).reshape(-1, 2 + GROUP)
    scales, numbers = groups[:, :2].contiguous().view(torch.half), groups[:, 2:].contiguous().view(torch.int8)
    return (scales.float() * numbers.float()).reshape(tensor.tensor_shape)


def gguf_operations():
    """Layers that dequantise by themselves, with the interface of ComfyUI-GGUF's GGMLOps."""
    import comfy.ops

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            comfy_cast_weights = True

            def __init__(self, in_features: int, out_features: int, bias: bool = True, **_options) -> None:
                nn.Module.__init__(self)
                self.in_features, self.out_features = in_features, out_features
                self.weight = self.bias = None
                self.casts = 0

            def _load_from_state_dict(self, state_dict, prefix: str, *_args) -> None:
                self.weight = nn.Parameter(state_dict[f"{prefix}weight"], requires_grad=False)
                self.bias = nn.Parameter(state_dict[f"{prefix}bias"], requires_grad=False)

            def is_ggml_quantized(self) -> bool:
                return isinstance(self.weight, GgufTensor)

            def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
                self.casts += 1
                dtype, device = dtype or input.dtype, device or input.device
                weight = values(self.weight.to(device)) if self.is_ggml_quantized() else self.weight
                return weight.to(device, dtype), self.bias.to(device, bias_dtype or dtype)

            def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
                if not self.is_ggml_quantized():
                    return super().forward_comfy_cast_weights(input)
                weight, bias = self.cast_bias_weight(input)
                return nn.functional.linear(input, weight, bias)

    return Operations
