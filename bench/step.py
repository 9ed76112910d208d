"""What a training step costs: against a bare forward and backward, and against ComfyUI's TrainLoraNode.

    python bench/step.py [--comfyui PATH] [--out FILE]

What is compared runs in turns in one process (A, B, C, A, B, C, ...), and the median of the ratios of each turn
counts, so that a busy machine slows all alike. bench/README.md says what each figure means.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import host

RANK = 32
SIZES = {
    "dim 512, 6 layers, 256 tokens": ({"dim": 512, "ffn_dim": 2048, "layers": 6}, (1, 32, 32)),
    "small world, 48 tokens": (None, (3, 8, 8)),
}
TOY_SIZES = {"toy": ({"dim": 128, "ffn_dim": 256, "layers": 1}, (1, 8, 8))}
"""Transformer to make (None: the one in the repository), and its latents."""


def main() -> None:
    """Measure, print and write."""
    options = host.start("step", __doc__.splitlines()[0])
    turns, core_rounds, core_steps = (2, 1, 3) if options.toy else (20, 4, 8)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (sizes, size_FHW) in (TOY_SIZES if options.toy else SIZES).items():
            case = Case(Path(folder), sizes, size_FHW)
            for checkpointing in (False, True):
                title = f"{name}, {'with' if checkpointing else 'no'} gradient checkpointing"
                figures[title] = {
                    **against_bare(case, checkpointing, turns),
                    **against_core(case, checkpointing, core_rounds, core_steps),
                }
                print(title, *(f"  {key}: {value}" for key, value in figures[title].items()), sep="\n", flush=True)
                host.write_result(options, figures)


class Case:
    """A transformer on disk and a dataset."""

    def __init__(self, folder: Path, sizes: dict | None, size_FHW: tuple[int, int, int]) -> None:
        import folder_paths
        from wantune.tests.world import random_models

        self.folder = folder
        self.path = random_models.make_dit(folder / "dit.safetensors", **sizes) if sizes else host.WORLD
        self.dataset = host.random_dataset(folder, size_FHW, items=4)
        folder_paths.set_output_directory(str(folder))

    def config(self, checkpointing: bool, steps: int):
        """The node's own settings, but for the number of steps."""
        from wantune.trainer.config import LoraConfig, TrainConfig

        return TrainConfig(
            epochs=steps, max_steps=steps, gradient_checkpointing=checkpointing, lora=LoraConfig(rank=RANK, alpha=RANK)
        )


def against_bare(case: Case, checkpointing: bool, turns: int) -> dict:
    """Whole steps as the node takes them, in turns with two bare loops."""
    from wantune.bench.peers import Bare

    clip = case.dataset.clips[0]
    with ExitStack() as stack:
        steps = {
            "ours": stack.enter_context(our_steps(case, checkpointing, turns + 1)),
            "bare": Bare(case.path, clip, RANK, checkpointing, folded=True).step,
            "bare padded": Bare(case.path, clip, RANK, checkpointing, folded=False).step,
        }
        seconds = in_turns(steps, turns)
    return {
        "ours / bare, same text rows": ratio(seconds["ours"], seconds["bare"]),
        "ours / bare, text padded to 512": ratio(seconds["ours"], seconds["bare padded"]),
        "our step, ms": milliseconds(seconds["ours"]),
        "bare step, same text rows, ms": milliseconds(seconds["bare"]),
        "bare step, text padded to 512, ms": milliseconds(seconds["bare padded"]),
    }


@contextmanager
def our_steps(case: Case, checkpointing: bool, num_steps: int) -> Iterator[Callable[[], None]]:
    """One whole step of the Train node a call: batch, noise, forward, backward, AdamW, log line, display."""
    from wantune.nodes.comfy_backend import ComfyDenoiser
    from wantune.nodes.live import Live
    from wantune.tests import tools
    from wantune.trainer.adapters import Adapter
    from wantune.trainer.checkpoint import RunFolder
    from wantune.trainer.loop import Trainer

    config = case.config(checkpointing, num_steps)
    denoiser = ComfyDenoiser(tools.load_dit(case.path))
    linears = denoiser.linears()
    adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
    run_folder = RunFolder(case.folder, "step", "0" * 8, {})
    trainer, live = Trainer(config, denoiser, adapter, case.dataset, run_folder), Live(None)
    with denoiser.attached(adapter, linears, checkpointing, 0), closing(trainer.run()) as events:
        live.publish(next(events))
        yield lambda: live.publish(next(events))


def in_turns(steps: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each, one step of each a turn; a first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def against_core(case: Case, checkpointing: bool, rounds: int, steps: int) -> dict:
    """Whole runs of both nodes in turns; a step is the time from one optimizer step to the next."""
    from wantune.bench.peers import train_with_core
    from wantune.nodes.live import Live
    from wantune.nodes.train import train
    from wantune.tests import tools

    def core() -> None:
        train_with_core(tools.load_dit(case.path), case.dataset, steps, RANK, checkpointing)

    def ours() -> None:
        train(tools.load_dit(case.path), case.dataset, "bench", case.config(checkpointing, steps), Live(None))

    seconds = {"ours": [], "core": []}
    for _ in range(rounds):
        seconds["ours"].append(statistics.median(seconds_between_steps(ours)))
        seconds["core"].append(statistics.median(seconds_between_steps(core)))
    return {
        "ours / core": ratio(seconds["ours"], seconds["core"]),
        "our node, ms a step": milliseconds(seconds["ours"]),
        "core's node, ms a step": milliseconds(seconds["core"]),
    }


def seconds_between_steps(run: Callable[[], None]) -> list[float]:
    """From one optimizer step to the next: whole steps without what comes before the first and after the last."""
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
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of each turn."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def milliseconds(seconds: list[float]) -> float:
    """Median."""
    return round(1000 * statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
