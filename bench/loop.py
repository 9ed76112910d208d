"""What the loop costs around the model: a step of 100 ms, with log, events, display, TensorBoard and checkpoints.

    python bench/loop.py [--comfyui PATH] [--out FILE]

The small world's transformer is trained; after each backward a sleep makes the model's part of a step 100 ms long.
Overhead is the time of the whole run divided by the time inside forward, backward, clipping and optimizer. A checkpoint
is written every 100 steps.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import host

STEP_SECONDS = 0.1
STEPS, TOY_STEPS = 400, 4
EVERY = 100
"""Steps between checkpoints."""


def main() -> None:
    """Measure, print and write."""
    options = host.parser("loop", __doc__.splitlines()[0]).parse_args()
    machine = host.start(options)
    with tempfile.TemporaryDirectory() as folder:
        figures = overhead(Path(folder), TOY_STEPS if options.toy else STEPS)
    print(*(f"  {key}: {value}" for key, value in figures.items()), sep="\n", flush=True)
    host.write(options, "loop", machine, {"loop": figures})


class Spent:
    """Seconds, and of them those that the processor worked for this thread; it works for others beside it."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    def within(self, function: Callable) -> Callable:
        """The function, whose calls are added."""
        def measured(*arguments):
            seconds, processor = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - seconds
                self.processor += time.thread_time() - processor

        return measured


def overhead(folder: Path, steps: int) -> dict[str, float]:
    """Time of the run divided by time in the model, and where the difference goes."""
    from wantune.bench import plans
    from wantune.bench.cases import Case
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.nodes.page.live import Live
    from wantune.tests.support import tools
    from wantune.trainer.adapter.adapters import Adapter
    from wantune.trainer.runs.folder import RunFolder
    from wantune.trainer.settings.training import TrainConfig, ValidationConfig
    from wantune.trainer.training.loop import Trainer

    case = Case(folder, None, (3, 8, 8))
    validation = ValidationConfig(every_steps=EVERY)
    config = TrainConfig(epochs=steps, max_steps=steps, gradient_checkpointing=False, validation=validation)
    denoiser = ComfyDenoiser(tools.load_dit(case.path))
    linears = denoiser.linears()
    adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
    run = RunFolder(folder / "loop")
    run.path.mkdir()
    trainer = Trainer(config, denoiser, adapter, case.dataset, run, run.resume(0))
    in_model, saving = Spent(), []
    backward = trainer._backward

    def padded(*arguments):
        start = time.perf_counter()
        result = backward(*arguments)
        time.sleep(max(0.0, STEP_SECONDS - (time.perf_counter() - start)))
        return result

    trainer._backward, trainer._update = in_model.within(padded), in_model.within(trainer._update)
    live = Live(None)

    def show(event) -> None:
        live.publish(event)
        if type(event).__name__ == "Saved":
            saving.append(event.seconds)

    with denoiser.attached(adapter, linears, plans.OFF, 0), closing(trainer.run()) as events:
        live.publish(next(events))
        whole = Spent()
        whole.within(lambda: [show(event) for event in events])()
    return {
        "whole / training itself": round(whole.seconds / in_model.seconds, 4),
        "steps": steps,
        "a step of training itself, ms": round(1000 * in_model.seconds / steps, 2),
        "processor time beside it, ms a step": round(1000 * (whole.processor - in_model.processor) / steps, 2),
        "a checkpoint, ms": round(1000 * sum(saving) / max(1, len(saving)), 1),
        "parameters of the adapter": sum(parameter.numel() for parameter in adapter.parameters),
    }


if __name__ == "__main__":
    main()
