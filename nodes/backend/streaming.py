"""How weights that do not stay on the device reach it, part by part: by blocks, or by the branches of blocks.

A part is computed in the forward pass, and again in backward right before its gradient, if it does not keep everything.
`fetched` encloses the first, and the gradient of a part that keeps everything: where ComfyUI can bring the weights of a
whole part at once (dynamic VRAM), it does, while the card still computes what comes before. `held` encloses the second:
each weight is cast once for both, so that what is offloaded crosses the bus twice a step, and what is quantised is
dequantised twice, for the memory of one part's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .frozen import FrozenLinear

try:
    from comfy import model_prefetch
except ImportError:  # older than dynamic VRAM
    model_prefetch = None

FETCHES_BLOCKS = model_prefetch is not None
"""Whether this version of ComfyUI brings all weights of a part at once, for a model in dynamic VRAM."""


class Streaming:
    """The weights of a network's parts on their way to the device.

    Parts may come in any order, one at a time: first to last in the forward pass and back in backward.

    Args:
        linears: what stands in for Linears of the network.
        is_dynamic: whether ComfyUI keeps the weights in dynamic VRAM.
    """

    def __init__(self, linears: Iterable[FrozenLinear], device: torch.device, is_dynamic: bool) -> None:
        self._stand_ins = {linear.module: linear for linear in linears}
        self._device = device
        self._queue = _queue(device) if is_dynamic else None

    @contextmanager
    def fetched(self, part: nn.Module) -> Iterator[None]:
        """Inside the context, for its forward or its gradient, a part is on the device where ComfyUI can do that."""
        if self._queue is None:
            yield
            return
        try:
            self._fetch(part)
            yield
        finally:
            self._let_go(part)

    @contextmanager
    def held(self, part: nn.Module) -> Iterator[None]:
        """Inside the context, for a part's second computation and its gradient, each weight is cast once."""
        linears = [self._stand_ins[module] for module in part.modules() if module in self._stand_ins]
        with self.fetched(part):
            for linear in linears:
                linear.keeps_cast = True
            try:
                yield
            finally:
                for linear in linears:
                    linear.keeps_cast = False
                    linear.let_go()

    def _fetch(self, part: nn.Module) -> None:
        self._queue.append(part)
        model_prefetch.prefetch_queue_pop(self._queue, self._device, part)

    def _let_go(self, part: nn.Module) -> None:
        if isinstance(self._queue[0], tuple):
            self._queue.append(None)
            model_prefetch.prefetch_queue_pop(self._queue, self._device, None)
        else:  # it came to an exception half-way
            model_prefetch.cleanup_prefetched_modules(part, list(part.modules()))
            self._queue[:] = [None]


def _queue(device: torch.device) -> list | None:
    """A queue of ComfyUI's at rest: the entry that the next call of `prefetch_queue_pop` takes out."""
    queue = model_prefetch and model_prefetch.make_prefetch_queue([], device, {"prefetch_dynamic_vbars": True})
    if queue is None:  # no streams, or none that copy beside the computation
        return None
    queue[:] = [None]
    return queue
