"""What a function or an object of another pack holds, as JSON, so that two that compute different things differ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType

import comfy.model_patcher
import torch

from ...trainer.base.tensors import sampled

try:
    from comfy.weight_adapter.bypass import BypassForwardHook, BypassInjectionManager
except ImportError:  # before ComfyUI 0.10
    BypassForwardHook = BypassInjectionManager = ()

DEPTH = 8
"""Objects within objects that are looked into."""

_CAST = (torch.float32, torch.float16, torch.bfloat16)
"""A Bypass LoRA on a layer of these dtypes is cast to them when it is first used."""


def described(value: object, model: torch.nn.Module) -> object:
    """Names, numbers and 256 values of each tensor, in functions (what they enclose) and in objects (attributes).

    Args:
        model: whose own modules say nothing new.
    """
    return _described(value, {id(module) for module in model.modules()}, DEPTH)


def _described(value: object, seen: set[int], depth: int) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), sampled(value).hex()]
    if isinstance(value, BypassInjectionManager):
        return [{key: strength for key, (_, strength) in value.adapters.items()},
                [_bypass(hook) for hook in value.hooks]]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth == 0 or id(value) in seen or isinstance(value, comfy.model_patcher.ModelPatcher):
        return name

    def inside(other: object) -> object:
        return _described(other, seen | {id(value)}, depth - 1)

    if isinstance(value, Mapping):
        return sorted(([str(key), inside(each)] for key, each in value.items()), key=str)
    if isinstance(value, (list, tuple)):
        return [inside(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inside(each) for each in value), key=str)
    if isinstance(value, torch.nn.Module):
        return [name, inside(value.state_dict())]
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return _function(value, inside)
    return [name, inside(getattr(value, "__dict__", {}))]


def _function(function: Callable, inside: Callable[[object], object]) -> list:
    if isinstance(function, functools.partial):
        return [inside(function.func), inside(function.args), inside(function.keywords)]
    if isinstance(function, MethodType):
        return [function.__qualname__, inside(function.__self__)]
    cells = [inside(cell.cell_contents) for cell in function.__closure__ or () if not _is_empty(cell)]
    return [f"{function.__module__}.{function.__qualname__}", cells, inside(function.__defaults__)]


def _is_empty(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018  an empty cell raises
    except ValueError:
        return True
    return False


def _bypass(hook) -> list:
    """As it is once it has been in the model, which it may have been or not."""
    weight = getattr(hook.module, "weight", None)
    dtype = weight.dtype if weight is not None and weight.dtype in _CAST else None
    held = getattr(hook.adapter, "weights", None)
    held = held if isinstance(held, (list, tuple)) else [held]
    return [type(hook.adapter).__name__, hook.multiplier,
            [sampled(each, dtype).hex() if isinstance(each, torch.Tensor) else each for each in held]]
