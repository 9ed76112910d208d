"""The device that gpu.py measures on: how fast it multiplies, how much it holds, and a smaller card imitated on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

GIB = 2**30
SIDE = {"cuda": 8192, "cpu": 512}
"""Of the square matrices that are multiplied."""
PRODUCTS, TURNS = 20, 5


def imitate(gib: float) -> None:
    """Let this process see and use no more than a card of so many GiB has; to be called before ComfyUI is imported.

    What the process needs beside torch's allocator (the CUDA context) counts as used, as it does on that card. How fast
    the card computes and how fast weights reach it stays what it is.
    """
    total, limit = torch.cuda.get_device_properties(0).total_memory, int(gib * GIB)
    real = torch.cuda.mem_get_info
    context = max(0, total - real()[0] - torch.cuda.memory_reserved())

    def mem_get_info(device=None) -> tuple[int, int]:
        free = min(real(device)[0], limit - context - torch.cuda.memory_reserved(device))
        return max(0, free), limit

    torch.cuda.set_per_process_memory_fraction((limit - context) / total)
    torch.cuda.mem_get_info = mem_get_info


def multiplication_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second in products of large square matrices: the median of a few turns."""
    side = SIDE.get(device.type, 4096)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = [seconds_of(lambda: torch.mm(a, b), PRODUCTS) for _ in range(TURNS + 1)]
    return 2 * side**3 / statistics.median(seconds[1:])


def seconds_of(step: Callable[[], object], times: int = 1) -> float:
    """Seconds of one of several calls that follow each other without a wait between them."""
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        step()
    synchronize()
    return (time.perf_counter() - start) / times


def seconds_a_step(run: Callable[[], object]) -> float:
    """Median time from the end of one optimizer step to the next in a whole run, without loading and set-up."""
    times = []

    def note(*_arguments) -> None:
        synchronize()
        times.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(note)
    try:
        run()
    finally:
        handle.remove()
    return statistics.median(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak() -> None:
    """Forget the peak so far, and give back what torch holds unused."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """The most bytes allocated since `start_peak`; None without a GPU, where torch does not count them."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
