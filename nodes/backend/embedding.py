"""The embedding of the noise level, made where it is needed.

ComfyUI makes its frequencies on the CPU and copies them to the card. The host waits for such a copy, and so for the
whole step before it, which it is meant to enqueue ahead of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

NAME = "sinusoidal_embedding_1d"
"""Of ComfyUI's function, in the module of the network."""


@contextmanager
def on_device(module: ModuleType, device: torch.device) -> Iterator[None]:
    """Inside the context, for one forward on a card, the module's function makes its tensors there."""
    theirs = getattr(module, NAME, None)
    if theirs is None or device.type == "cpu":
        yield
        return

    def embedding(dim: int, position: torch.Tensor) -> torch.Tensor:
        with torch.device(position.device):
            return theirs(dim, position)

    setattr(module, NAME, embedding)
    try:
        yield
    finally:
        setattr(module, NAME, theirs)
