"""Gradient checkpointing (arXiv:1604.06174) without hooks on single tensors.

Only a part's input is kept; in backward the part is computed again, with autograd, and its gradient taken at once.
torch.utils.checkpoint does the same, but records every saved tensor twice, in forward and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

Around = Callable[[], AbstractContextManager]


class Recomputed:
    """Calls a part of the model; nothing but its input is kept for backward.

    Args:
        part: computes a tensor from x and further arguments, of which only x carries a gradient; parameters of an
            adapter that it uses get theirs.
        first: encloses the first computation.
        again: encloses the second computation and its backward.
        trains: whether an adapter's parameters are in the part.
        draws: whether the part draws random numbers, which must be the same both times.
    """

    def __init__(
        self, part: Callable[..., torch.Tensor], first: Around, again: Around, trains: bool, draws: bool
    ) -> None:
        self._part = part
        self._first = first
        self._trains = trains
        self._again = again
        self.draws = draws

    def __call__(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """part(x, *args, **kwargs)"""
        if not (torch.is_grad_enabled() and (self._trains or x.requires_grad)):
            return self.computed(x, *args, **kwargs)
        # it makes autograd record the part where x carries no gradient
        trigger = torch.empty((), requires_grad=True)
        return _RecomputedNode.apply(trigger, x, self, args, kwargs)

    def computed(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The first computation."""
        with self._first():
            return self._part(x, *args, **kwargs)

    @contextmanager
    def computed_again(self, x: torch.Tensor, args: tuple, kwargs: dict) -> Iterator[torch.Tensor]:
        """Gives the result of the second computation; its backward belongs inside the context."""
        with self._again():
            with torch.enable_grad():
                y = self._part(x, *args, **kwargs)
            yield y


class _RecomputedNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, _trigger, x: torch.Tensor, call: Recomputed, args: tuple, kwargs: dict) -> torch.Tensor:
        ctx.call, ctx.args, ctx.kwargs = call, args, kwargs
        ctx.random = RandomStates(x) if call.draws else None
        ctx.save_for_backward(x)
        return call.computed(x, *args, **kwargs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        (x,) = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[1]
        x = x.detach().requires_grad_(needs_x)
        random = nullcontext() if ctx.random is None else ctx.random.restored()
        with random, ctx.call.computed_again(x, ctx.args, ctx.kwargs) as y:
            torch.autograd.backward(y, grad_output)
        return None, x.grad if needs_x else None, None, None, None


class RandomStates:
    """torch's global generators of the CPU and of a tensor's device, as they are now."""

    def __init__(self, x: torch.Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._device_type = x.device.type
        self._devices, self._states = get_device_states(x)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside the context they are as they were when this was made; after it as before it."""
        kind = {"device_type": self._device_type} if self._devices else {}
        with torch.random.fork_rng(devices=self._devices, **kind):
            torch.set_rng_state(self._cpu)
            if self._devices:
                set_device_states(self._devices, self._states, **kind)
            yield
