"""Measures what a forward pass keeps and what a training step allocates, to check `footprint.parts`."""

from __future__ import annotations

import statistics
import tempfile
from itertools import accumulate
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

from ..tests.support import tools
from ..trainer.memory.plan import Plan
from . import plans
from .cases import RANK, Case, Run, running

VARIANTS = {
    "fp32": (None, None),
    "fp8 computed in bf16": (torch.float8_e4m3fn, torch.bfloat16),
}
"""The dtype of the weights and of the computation (None: ComfyUI's own choice)."""
DIM, FFN_DIM, LAYERS = 256, 1536, 4
"""The proportions of Wan2.1 1.3B."""
LATENTS = {256: (1, 32, 32), 1024: (1, 64, 64), 4096: (4, 64, 64)}
"""Latent frames, rows and columns by the number of their tokens."""
MEMORY, FORWARD_IS_OVER = "[memory]", "wantune: the forward is over"
"""Names of what the profiler records: its own, and ours."""


class Step:
    """Bytes of one training step: `kept` when the forward is over, and allocated at the `peak`.

    Neither includes what outlives a step: `adapter`, the bytes of the adapter and AdamW's two moments, all in fp32.
    """

    def __init__(self, run: Run) -> None:
        run.step()  # AdamW makes its moments in the first step
        numbers = sum(parameter.numel() for parameter in run.adapter.parameters)
        self.adapter = 3 * 4 * numbers
        self.kept = _kept(run)
        self.peak = peak(run.step)


def measure(toy: bool) -> dict:
    """For each variant the ratio of estimated to measured bytes, and what the estimate's constants should be."""
    latents = {16: (1, 8, 8)} if toy else LATENTS
    figures = {}
    for name in ("fp32",) if toy else VARIANTS:
        found = {"constants": constants(name, latents)}
        for plan in (plans.OFF, plans.ON):
            for tokens, size_FHW in latents.items():
                step, estimate = one_step(name, FFN_DIM, LAYERS, size_FHW, plan)
                title = f"{tokens} tokens, gradient checkpointing {'off' if plan == plans.OFF else 'on'}"
                found[f"estimate / truth, {title}"] = round(estimate / (step.peak + step.adapter), 2)
        figures[name] = found
        print(name, *(f"  {key}: {value}" for key, value in found.items()), sep="\n", flush=True)
    return figures


def constants(name: str, latents: dict) -> dict[str, str]:
    """Values per token, fitted as a x dim + b x ffn_dim: kept for one block, and used in backward beside that."""
    tokens = sorted(latents)[len(latents) // 2]
    scale = tokens * (VARIANTS[name][1] or torch.float32).itemsize
    kept, used = {}, {}
    for ffn_dim in (FFN_DIM, 2 * FFN_DIM):
        (few, _), (more, _) = (one_step(name, ffn_dim, layers, latents[tokens], plans.OFF) for layers in (2, 3))
        kept[ffn_dim] = (more.kept - few.kept) / scale
        used[ffn_dim] = statistics.mean((few.peak - few.kept, more.peak - more.kept)) / scale
    return {"kept a block": _line(kept, 8 * RANK), "used in backward": _line(used, 0)}


def one_step(
    name: str, ffn_dim: int, layers: int, size_FHW: tuple[int, int, int], plan: Plan
) -> tuple[Step, int]:
    """The measured step of a model of so many layers, and the estimate in bytes for it."""
    weights, compute = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), {"dim": DIM, "ffn_dim": ffn_dim, "layers": layers}, size_FHW)
        model = tools.load_dit(case.path, **({"dtype": weights} if weights else {}))
        if compute:
            model.set_model_compute_dtype(compute)
        with running(case, model, plan, 3) as run:
            estimate = plans.planned(run.denoiser, run.adapter.config, case.num_tokens, 1, plan)
            return Step(run), estimate


def _line(values: dict[int, float], offset: int) -> str:
    (near, low), (far, high) = values.items()
    slope = (high - low) / (far - near)
    line = f"{(low - offset - slope * near) / DIM:.1f} x dim + {slope:.1f} x ffn_dim"
    return f"{line} + {offset}" if offset else line


def _kept(run: Run) -> int:
    """Bytes that are allocated when the forward is over, beyond those before the step."""
    allocated: list[int] = []

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        if not allocated:  # backward asks for the first tensor of the loss
            with torch.profiler.record_function(FORWARD_IS_OVER):
                allocated.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
        return tensor

    with saved_tensors_hooks(lambda tensor: tensor, mark):
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            run.step()
            return allocated[0] - before
        changes = _changes(run.step)
    names = [name for _, name, _ in changes]
    return sum(number for *_, number in changes[:names.index(FORWARD_IS_OVER)])


def peak(step) -> int:
    """Bytes that are allocated at most during a step, beyond those allocated before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    return max(accumulate(number for *_, number in _changes(step)))


def _changes(step) -> list[tuple[int, str, int]]:
    """(time, name, bytes) of what is allocated on the CPU and freed, and of the end of the forward, with 0 bytes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    return sorted((event.start_ns(), event.name(), event.nbytes() if event.name() == MEMORY else 0)
                  for event in profile.profiler.kineto_results.events() if event.name() in (MEMORY, FORWARD_IS_OVER))
