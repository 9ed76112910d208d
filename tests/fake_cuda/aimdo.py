"""comfy-aimdo's calls without its library, so that ComfyUI's dynamic VRAM (ModelPatcherDynamic) can be run.

Its pages are there for the lowest addresses of a model, up to a share of all, as the library's watermark has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch


class Aimdo:
    """What was asked of it."""

    def __init__(self, share: float) -> None:
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
        if address + size > self.share * vbar.size:
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
                self.size = 0

            def alloc(self, size: int) -> tuple:
                address, self.size = self.size, self.size + size
                return self, address, size

            def prioritize(self, *_args) -> None:
                outer.prioritized += 1

            def loaded_size(self) -> int:
                return 0

            def free_memory(self, _size) -> int:
                return 0

        class HostBuffer:
            def __init__(self, *_args) -> None:
                self.size = 0

        class VRAMBuffer:
            """Of a stream: each weight that is cast gets a place in it."""

            def __init__(self, *_args) -> None:
                self._size = 0

            def size(self) -> int:
                return self._size

            def get(self, size: int, offset: int) -> tuple:
                self._size = max(self._size, offset + size)
                return self, offset, size

        vbar = comfy_aimdo.model_vbar
        replaced = [
            (vbar, "ModelVBAR", ModelVBAR), (vbar, "vbar_fault", self.fault), (vbar, "vbar_unpin", self.unpin),
            (vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b),
            (comfy_aimdo.host_buffer, "HostBuffer", HostBuffer),
            (comfy_aimdo.vram_buffer, "VRAMBuffer", VRAMBuffer),
            (comfy_aimdo.torch, "aimdo_to_tensor",
             lambda allocation, device: torch.empty(allocation[2], dtype=torch.uint8, device=device)),
            (comfy.memory_management, "aimdo_enabled", True),
            (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
            (comfy.model_management.args, "disable_pinned_memory", True),
        ]
        with ExitStack() as stack:
            for place, name, value in replaced:
                stack.enter_context(patch.object(place, name, value))
            yield
