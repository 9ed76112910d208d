"""Tensors that ComfyUI made in inference mode, as autograd takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


def normal_view(parameter: torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory that autograd accepts, also when the parameter is an inference tensor."""
    view = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    return view.set_(
        parameter.untyped_storage(), parameter.storage_offset(), parameter.shape, parameter.stride()
    )


class NormalTensors(TorchFunctionMode):
    """Lets autograd pass through functions of others, whose own tensors ComfyUI made in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self._is_on = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the context tensors are taken as they are."""
        before, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = before

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self._is_on:
            args, kwargs = tree_map_only(torch.Tensor, _as_normal, (args, kwargs))
        return function(*args, **(kwargs or {}))


def _as_normal(tensor: torch.Tensor) -> torch.Tensor:
    is_plain = type(tensor) in (nn.Parameter, torch.Tensor)
    return normal_view(tensor) if is_plain and tensor.is_inference() else tensor
