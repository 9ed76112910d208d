"""Tensors that wait in pinned RAM for backward, moved beside the computation on a stream of their own.

Backward takes them in the reverse order, so each is fetched while what was put away after it is still used.
"""

from __future__ import annotations

from collections import defaultdict

import torch


class Parked:
    """A tensor that was put away."""

    def __init__(self, host: torch.Tensor, before: Parked | None, event) -> None:
        self.host = host
        self.before = before
        self.event = event
        """After which it is in RAM; after which it is on the device, once it is fetched."""
        self.fetched: torch.Tensor | None = None


class Parking:
    """Where they wait; the memory is used again.

    Args:
        device: where they come from and go to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._free: dict[tuple, list[torch.Tensor]] = defaultdict(list)
        self._last: Parked | None = None

    def put(self, tensor: torch.Tensor) -> Parked:
        """Put a tensor away; what refers to it otherwise keeps its memory."""
        key = (tensor.shape, tensor.dtype)
        host = self._free[key].pop() if self._free[key] else torch.empty(
            tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            event = self._stream.record_event()
        tensor.record_stream(self._stream)
        self._last = Parked(host, self._last, event)
        return self._last

    def take(self, parked: Parked) -> torch.Tensor:
        """Get it back, and begin to fetch the one that was put away before it."""
        self._fetch(parked)
        torch.cuda.current_stream(self._device).wait_event(parked.event)
        tensor, parked.fetched = parked.fetched, None
        tensor.record_stream(torch.cuda.current_stream(self._device))
        self._free[(tensor.shape, tensor.dtype)].append(parked.host)
        before, parked.before = parked.before, None
        self._last = before
        if before is not None:
            self._fetch(before)
        return tensor

    def clear(self) -> None:
        """Forget what is still away: its backward never came."""
        self._last = None

    def _fetch(self, parked: Parked) -> None:
        if parked.fetched is not None:
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(parked.event)
            parked.fetched = parked.host.to(self._device, non_blocking=True)
            parked.event = self._stream.record_event()
