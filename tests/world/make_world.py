"""Makes the small Wan world: trains its transformer in legs, judges it and writes its files.

    python tests/world/make_world.py --work .world --hours 8                 a leg; the same command goes on
    python tests/world/make_world.py --work .world --hours 2 --decay 6000    the last one: the learning rate falls
    python tests/world/make_world.py --work .world --judge 200               judges the average of the weights
    python tests/world/make_world.py --work .world --export FOLDER           dit.safetensors in float16
    python tests/world/make_world.py --nines FOLDER                          stills of the digit it never saw

ComfyUI is taken from COMFYUI_PATH; judging also needs scikit-learn. A leg may be killed at any time and loses what came
after its last checkpoint (4 minutes at most). WORK/log.jsonl has a line for the losses every 50 steps and
for an evaluation every 1000. docs/small_world.md says what the world shows.

Why it is as it is:
- Its VAE gives back at 28 dB what moves 2 pixels a frame (19 dB at 4), letters too, and the judge reads every frame
  of what it gives back right. So it stays, and with it the motion of 2 pixels.
- Its text encoder stays: its pieces include every single letter, so that any word has a text.
- The transformer keeps its size, 5.9 M parameters, and begins with the weights it has: a larger one would
  make each test that trains on it slower.
- One place, twelve clean shapes a class: crisp is reached where nothing is left open, and the same is seen often.
- Letters, and invented shapes that have words of their own: see scenes.py and captions.py.
- float32: without AMX, bfloat16 takes twice its time here. Two processes of one thread each.
"""

import argparse
import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORLD = Path(__file__).resolve().parent

if "wantune" not in sys.modules:  # a script, or a process that it started
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, WORLD)]

from wantune.demo import launch  # noqa: E402
from wantune.demo.comfyui import find, unpacked  # noqa: E402


def prepare() -> None:
    import os

    launch.prepare_imports()
    folder = (find(ROOT, None, os.environ) or unpacked(ROOT)).path
    launch.import_comfyui(folder)


def work_of_one_process(rank: int, *arguments) -> None:
    prepare()
    from wantune.tests.world import training

    training.train(rank, *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".world"), metavar="FOLDER",
                        help="checkpoints, latents and log (default: .world)")
    parser.add_argument("--hours", type=float, metavar="H", help="train for so long")
    parser.add_argument("--decay", type=int, default=0, metavar="STEPS", help="the last steps: the rate falls to zero")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--judge", type=int, metavar="N", help="judge N videos of each group")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the average of the weights")
    parser.add_argument("--nines", type=Path, metavar="FOLDER", help="draw the stills of the nine")
    options = parser.parse_args()
    options.work = options.work.resolve()
    if options.hours:
        train(options)
    if options.judge:
        print(json.dumps(judged(run_of(options.work), options.judge), indent=1))
    if options.nines:
        prepare()
        from wantune.tests.world.concept import draw_stills

        print(draw_stills(options.nines))
    if options.export:
        print(export(run_of(options.work), options.export))


def plan():
    from wantune.tests.world.training import Plan

    return Plan(start_from=WORLD / "dit.safetensors", vae=WORLD / "vae.safetensors",
                text_encoder=WORLD / "umt5.safetensors")


def train(options: argparse.Namespace) -> None:
    import tempfile

    import filelock
    import torch.multiprocessing

    from wantune.tests.world.training import Leg

    options.work.mkdir(parents=True, exist_ok=True)
    leg = Leg(work=options.work, seconds=3600 * options.hours, last_step=10**9, decay=options.decay,
              processes=options.processes)
    try:
        only = filelock.FileLock(options.work / "lock", timeout=0).acquire()
    except filelock.Timeout:
        raise ValueError(f"Another process trains in {options.work}; stop it first or name another folder.") from None
    with only, tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            work_of_one_process, (plan(), leg, f"file://{folder}/rendezvous"), nprocs=leg.processes
        )


def run_of(work: Path):
    from wantune.tests.world.training import Run, checkpoints

    if not checkpoints(work):
        raise ValueError(f"{work} holds no checkpoint; train first, with --hours.")
    return Run(plan(), work)


def judged(run, count: int) -> dict:
    prepare()
    from wantune.tests.world.evaluate import evaluate
    from wantune.tests.world.judge import Judge
    from wantune.tests.world.latents import Vae
    from wantune.tests.world.text import TextEncoder

    text, vae = TextEncoder(run.plan.text_encoder), Vae(run.plan.vae)
    return {"step": run.step, **evaluate(run.average, text, vae, Judge(), count, seed=1)}


def export(run, folder: Path) -> Path:
    """Write the average of a run's weights as dit.safetensors in float16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dit.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in run.average.state_dict().items()}, path)
    return path


if __name__ == "__main__":
    main()
