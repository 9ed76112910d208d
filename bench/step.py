"""What a training step costs, against a bare forward and backward and against ComfyUI's own TrainLoraNode.

    python bench/step.py [--comfyui PATH] [--out FILE]

What is compared runs in turns in one process (A, B, C, A, B, C, ...), and the median of the ratios of the
turns counts, so that a busy machine slows all alike. bench/README.md says what each figure means.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import host

MEDIUM = {"dim": 512, "ffn_dim": 2048}
SIZES = {
    "dim 512, 6 layers, 256 tokens": ({**MEDIUM, "layers": 6}, (1, 32, 32), 12),
    "dim 512, 3 layers, 1024 tokens": ({**MEDIUM, "layers": 3}, (1, 64, 64), 6),
    "small world, 48 tokens": (None, (3, 8, 8), 60),
}
TOY = {"toy": ({"dim": 128, "ffn_dim": 256, "layers": 1}, (1, 8, 8), 2)}
"""Transformer, latent (frames, rows, columns), turns."""
CORE_ROUNDS, CORE_STEPS = 3, 6
TOY_ROUNDS, TOY_STEPS = 1, 3


def main() -> None:
    """Measure, print and write."""
    options = host.parser("step", __doc__.splitlines()[0]).parse_args()
    machine = host.start(options)
    from wantune.bench.cases import Case

    rounds, steps = (TOY_ROUNDS, TOY_STEPS) if options.toy else (CORE_ROUNDS, CORE_STEPS)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (dit, size_FHW, turns) in (TOY if options.toy else SIZES).items():
            case = Case(Path(folder) / name, dit, size_FHW)
            for checkpointing in (False, True):
                title = f"{name}, gradient checkpointing {'on' if checkpointing else 'off'}"
                figures[title] = against_bare(case, checkpointing, turns)
                figures[title] |= against_core(case, checkpointing, rounds, steps)
                lines = [f"  {key}: {value}" for key, value in figures[title].items()]
                print(title, *lines, sep="\n", flush=True)
                host.write(options, "step", machine, {"step": figures})


def against_bare(case, checkpointing: bool, turns: int) -> dict[str, float]:
    """Compares whole steps of our node with the steps of two bare loops, in turns."""
    from wantune.bench.cases import RANK, running
    from wantune.bench.peers import Bare
    from wantune.tests.support import tools

    sample = case.dataset.samples[0]
    with ExitStack() as stack:
        run = stack.enter_context(running(case, tools.load_dit(case.path), checkpointing, turns + 1))
        bare = Bare(case.path, sample, RANK, checkpointing, folded=True)
        padded = Bare(case.path, sample, RANK, checkpointing, folded=False)
        ours, same, usual = in_turns([run.step, bare.step, padded.step], turns)
    return {
        "ours / bare, same text rows": ratio(ours, same),
        "ours / bare, text padded to 512": ratio(ours, usual),
        "our step, ms": milliseconds(ours),
        "bare step, same text rows, ms": milliseconds(same),
        "bare step, text padded to 512, ms": milliseconds(usual),
    }


def in_turns(steps: list[Callable[[], None]], turns: int) -> list[list[float]]:
    """Seconds of each step function, called once in each turn; a first turn, which is not counted, warms up."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(turns + 1):
        for step, times in zip(steps, seconds, strict=True):
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if turn:
                times.append(time.perf_counter() - start)
    return seconds


def against_core(case, checkpointing: bool, rounds: int, steps: int) -> dict[str, float]:
    """Compares the steps of whole runs of our node and of ComfyUI's TrainLoraNode, in turns."""
    from wantune.bench.cases import RANK
    from wantune.bench.peers import train_with_core
    from wantune.tests.support import tools

    ours, core = [], []
    for _ in range(rounds):
        # a model each: some versions of core's node leave theirs changed
        ours.append(seconds_a_step(lambda: case.train(tools.load_dit(case.path), checkpointing, steps)))
        core.append(seconds_a_step(
            lambda: train_with_core(tools.load_dit(case.path), case.dataset, steps, RANK, checkpointing)
        ))
    return {
        "ours / core": ratio(ours, core),
        "our node, ms a step": milliseconds(ours),
        "core's node, ms a step": milliseconds(core),
    }


def seconds_a_step(run: Callable[[], None]) -> float:
    """Median time from the end of one optimizer step to the next: whole steps, without loading and set-up."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

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
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over all turns of the ratio ours / theirs."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def milliseconds(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return round(1000 * statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
