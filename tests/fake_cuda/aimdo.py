"""comfy-aimdo's calls without its library, so that ComfyUI's dynamic VRAM (ModelPatcherDynamic) can be run.

Its pages are there for the lowest addresses of a model, up to a share of all, as the library's watermark has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from .counting import Counting
from .device import CUDA


class Aimdo:
    """What was asked of it.

    Args:
        counting: counts what is on the card.
    """

    def __init__(self, counting: Counting, share: float) -> None:
        self.counting = counting
        self.share = share
        """Of a model's bytes that may be resident."""
        self.pins: Counter = Counter()
        """Pages that were faulted in and not unpinned, by address."""
        self.outside: dict[int, int] = {}
        """{address: bytes} of what was refused, once each."""
        self._inside: dict[int, int] = {}
        self.prioritized = 0
        """How often the watermark was put back up."""

    @property
    def pins_left(self) -> int:
        """Pins that nobody gave back."""
        return self.pins.total()

    @property
    def inside(self) -> int:
        """Bytes that were granted."""
        return sum(self._inside.values())

    def fault(self, allocation: tuple) -> tuple | None:
        """Make an allocation resident, and pin it; None where there is no room."""
        vbar, address, size = allocation
        if address + size > self.share * vbar.offset:
            self.outside[address] = size
            return None
        self.pins[address] += 1
        self._inside[address] = size
        return (address,)

    def unpin(self, allocation: tuple) -> None:
        """Give back one pin."""
        self.pins[allocation[1]] -= 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context ComfyUI has it. Models must be loaded inside."""
        import comfy.memory_management
        import comfy.model_management
        import comfy.model_patcher
        import comfy_aimdo.host_buffer
        import comfy_aimdo.model_vbar
        import comfy_aimdo.torch
        import comfy_aimdo.vram_buffer

        outer = self

        class ModelVBAR:
            def __init__(self, _size, _device) -> None:
                self.offset = 0

            def alloc(self, size: int) -> tuple:
                address, self.offset = self.offset, self.offset + size
                return self, address, size

            def prioritize(self, *_args) -> None:
                outer.prioritized += 1

            def loaded_size(self) -> int:
                return outer.inside

            def free_memory(self, _size) -> int:
                return 0

        class HostBuffer:
            def __init__(self, *_args) -> None:
                self.size = 0

        class VRAMBuffer:
            """Of a stream: grows where it lies, and keeps its memory; the next weights overwrite those before them."""

            def __init__(self, *_args) -> None:
                self.memory = torch.empty(0, dtype=torch.uint8, device=CUDA)

            def size(self) -> int:
                return len(self.memory)

            def get(self, size: int, offset: int) -> tuple:
                if offset + size > self.size():
                    outer.counting.outgrow(self.memory)
                    self.memory = torch.empty(offset + size, dtype=torch.uint8, device=CUDA)
                return self, offset, size

        def to_tensor(allocation: tuple, device: torch.device) -> torch.Tensor:
            owner, offset, size = allocation
            if isinstance(owner, VRAMBuffer):
                return owner.memory[offset:offset + size]
            return torch.empty(size, dtype=torch.uint8, device=device)

        vbar = comfy_aimdo.model_vbar
        replaced = [
            (vbar, "ModelVBAR", ModelVBAR), (vbar, "vbar_fault", self.fault), (vbar, "vbar_unpin", self.unpin),
            (vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b),
            (comfy_aimdo.host_buffer, "HostBuffer", HostBuffer),
            (comfy_aimdo.vram_buffer, "VRAMBuffer", VRAMBuffer),
            (comfy_aimdo.torch, "aimdo_to_tensor", to_tensor),
            (comfy.memory_management, "aimdo_enabled", True),
            (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
            (comfy.model_management.args, "disable_pinned_memory", True),
        ]
        with ExitStack() as stack:
            for place, name, value in replaced:
                stack.enter_context(patch.object(place, name, value))
            yield
