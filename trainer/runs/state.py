"""Nested state as safetensors and JSON: what PyTorch's optimizers hand out, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

_TENSOR = "tensor"
_MAP = "map"
_TUPLE = "tuple"
_DTYPE = "dtype"
_FLOAT = "float"


def take_apart(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """JSON-able data in which a tensor is {"tensor": its name}, and the tensors by that name, on the CPU.

    Maps may have whole numbers for keys; lists, tuples, text, numbers, dtypes, booleans and None stay what they are.

    Raises:
        TypeError: anything else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def apart(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {_MAP: [[apart(key), apart(each)] for key, each in value.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [apart(each) for each in value]}
        if isinstance(value, list):
            return [apart(each) for each in value]
        if isinstance(value, torch.dtype):
            return {_DTYPE: str(value).removeprefix("torch.")}
        if isinstance(value, float) and not math.isfinite(value):
            return {_FLOAT: str(value)}  # JSON has none
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    return apart(state), tensors


def put_together(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `take_apart`."""
    if isinstance(data, list):
        return [put_together(each, tensors) for each in data]
    if isinstance(data, dict):
        if _TENSOR in data:
            return tensors[data[_TENSOR]]
        if _DTYPE in data:
            return getattr(torch, data[_DTYPE])
        if _FLOAT in data:
            return float(data[_FLOAT])
        if _TUPLE in data:
            return tuple(put_together(each, tensors) for each in data[_TUPLE])
        return {put_together(key, tensors): put_together(each, tensors) for key, each in data[_MAP]}
    return data
