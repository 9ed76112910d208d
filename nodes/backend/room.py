"""Room for the weights in dynamic VRAM, which ComfyUI takes away and does not give back by itself.

A model's weights have pages of device memory up to a mark. Whenever memory is short the mark falls, and what lies
above it crosses the bus for each use from then on; only loading the model raises it. So after one peak, such as a
preview, the rest of a run would stream weights that have long had room again.
"""

from __future__ import annotations

import comfy.model_management

LONGEST_PAUSE = 64
"""Passes through the network between two attempts, where the room is taken away again each time."""


class Room:
    """Raises the mark of one loaded model when it is seen to have fallen; without dynamic VRAM it does nothing.

    Where a pass takes the room away again, the next attempt waits twice as many passes as the one before.
    """

    def __init__(self, patcher) -> None:
        self._pages = getattr(patcher.model, "dynamic_vbars", {}).get(patcher.load_device)
        self._pause = self._left = 0

    def look(self) -> None:
        """Call it before each pass through the network."""
        if self._pages is None:
            return
        if self._left:
            self._left -= 1
        elif self._pages.loaded_size() >= self._pages.offset:  # bytes on the device, and of all weights
            self._pause = 0
        else:
            if not self._pause:
                comfy.model_management.soft_empty_cache()  # what a peak has left in torch's hands
            self._pages.prioritize()
            self._left = self._pause
            self._pause = min(2 * self._pause or 1, LONGEST_PAUSE)
