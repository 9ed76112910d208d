"""Streams, events and pinned memory of a card that is not there: they order nothing, and a wait for one is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch

from .counting import Counting


class Stream:
    """A CUDA stream."""

    counting: Counting
    cuda_stream = 0

    def __init__(self, device=None, priority: int = 0) -> None:
        self.device = device

    def wait_stream(self, other) -> None:
        """On the card; the host goes on."""

    def wait_event(self, event) -> None:
        """On the card; the host goes on."""

    def record_event(self, event=None):
        """An event at the end of what was queued so far."""
        return event or Event()

    def query(self) -> bool:
        """Whether all that was queued is done."""
        return True

    def synchronize(self) -> None:
        """The host waits."""
        self.counting.wait("a stream is waited for")

    def __enter__(self):
        self._within = on_stream(self)
        self._within.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._within.__exit__(*error)


class Event:
    """A CUDA event."""

    counting: Counting

    def __init__(self, enable_timing=False, blocking=False, interprocess=False) -> None:
        pass

    def record(self, stream=None) -> None:
        """On the card; the host goes on."""

    def wait(self, stream=None) -> None:
        """On the card; the host goes on."""

    def query(self) -> bool:
        """Whether it was reached."""
        return True

    def elapsed_time(self, _end) -> float:
        """Milliseconds."""
        return 1.0

    def synchronize(self) -> None:
        """The host waits."""
        self.counting.wait("an event is waited for")


_current = [Stream()]


@contextmanager
def on_stream(stream) -> Iterator[None]:
    """What torch.cuda.stream is."""
    if stream is None:
        yield
        return
    _current.append(stream)
    try:
        yield
    finally:
        _current.pop()


@contextmanager
def in_place(counting: Counting) -> Iterator[None]:
    """Inside the context torch.cuda has them; waits go to `counting`."""
    Stream.counting = Event.counting = counting
    cuda = torch.cuda
    replaced = {
        "Stream": Stream, "Event": Event, "stream": on_stream, "current_stream": lambda device=None: _current[-1],
        "default_stream": lambda device=None: _current[0], "set_stream": lambda stream: None,
        "synchronize": lambda device=None: counting.wait("the card is waited for"),
        "empty_cache": lambda: None, "current_device": lambda: 0, "device_count": lambda: 1,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None, "manual_seed": lambda seed: None,
        "device": lambda device=None: nullcontext(), "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "cudart": lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0),
    }

    def pinned(tensor: torch.Tensor, *_args) -> torch.Tensor:
        copy = tensor.clone()
        counting.pin(copy)
        return copy

    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch.object(cuda, name, value))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", pinned))
        stack.enter_context(patch.object(torch.Tensor, "is_pinned", lambda tensor, *_args: counting.is_pinned(tensor)))
        stack.enter_context(patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        yield
