"""Rotation matrices of the positions, which are a function of the size alone: computed once for each of the last sizes.

ComfyUI computes them in each forward, by some forty kernels. For few tokens these take longer to start than to run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...trainer.memory.plan import FEW_ROWS

NAME = "rope_encode"
"""Of ComfyUI's method of the network."""

SIZES = 4
"""So many are kept, of FEW_ROWS tokens at most: 1 KiB for each token, so 8 MiB."""


class Positions:
    """What the network's method gave.

    Args:
        saves_memory: nothing is kept.
    """

    def __init__(self, saves_memory: bool = False) -> None:
        self._saves_memory = saves_memory
        self._kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    @contextmanager
    def kept(self, network: nn.Module) -> Iterator[None]:
        """Inside the context, for one forward, what is kept is given again; another pack's method is left alone."""
        method = getattr(type(network), NAME, None)
        is_known = method is not None and method.__module__ == type(network).__module__
        # what is made in inference mode cannot be used in training
        if self._saves_memory or not is_known or NAME in network.__dict__ or torch.is_inference_mode_enabled():
            yield
            return

        def encode(*args, transformer_options: dict | None = None, **kwargs) -> torch.Tensor:
            key = (*args, *sorted(kwargs.items()))
            if any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
                return method(network, *args, transformer_options=transformer_options or {}, **kwargs)
            if key not in self._kept:
                made = method(network, *args, transformer_options=transformer_options or {}, **kwargs)
                if made.shape[1] > FEW_ROWS:
                    return made
                self._kept[key] = made
            self._kept.move_to_end(key)
            while len(self._kept) > SIZES:
                self._kept.popitem(last=False)
            return self._kept[key]

        network.__dict__[NAME] = encode
        try:
            yield
        finally:
            del network.__dict__[NAME]
