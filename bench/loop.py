"""What the loop costs around the model: a step of 100 ms, with log, events, display, TensorBoard and checkpoints.

    python bench/loop.py [--comfyui PATH] [--out FILE]

The small world's transformer is trained; after each backward a sleep makes the model's part of a step 100 ms long.
Overhead is the time of the whole run divided by the time inside forward, backward, clipping and optimizer. A checkpoint
is written every 100 steps.
"""

import tempfile
import time
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
    in_model, saving = [], []
    backward = trainer._backward

    def padded(*arguments):
        start = time.perf_counter()
        result = backward(*arguments)
        time.sleep(max(0.0, STEP_SECONDS - (time.perf_counter() - start)))
        in_model.append(time.perf_counter() - start)
        return result

    def timed(function):
        def measured(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            in_model.append(time.perf_counter() - start)
            return result

        return measured

    trainer._backward, trainer._update = padded, timed(trainer._update)
    live = Live(None)
    with denoiser.attached(adapter, linears, plans.OFF, 0), closing(trainer.run()) as events:
        live.publish(next(events))
        start = time.perf_counter()
        for event in events:
            live.publish(event)
            if type(event).__name__ == "Saved":
                saving.append(event.seconds)
        seconds = time.perf_counter() - start
    return {
        "whole / training itself": round(seconds / sum(in_model), 4),
        "steps": steps,
        "a step of training itself, ms": round(1000 * sum(in_model) / steps, 2),
        "a checkpoint, ms": round(1000 * sum(saving) / max(1, len(saving)), 1),
        "parameters of the adapter": sum(parameter.numel() for parameter in adapter.parameters),
    }


if __name__ == "__main__":
    main()
