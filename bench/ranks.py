"""Time and bytes of a step in one, two and four processes, and where the time goes.

    python bench/ranks.py [--out FILE] [--threads N] [--toy] [--counts 1 2 4]

A Wan2.1 of random weights on diffusers' transformer, the same global batch for each number of processes, so that all of
them train the same run: held whole by each process, and shared out over them (FSDP2). On a machine with as many GPUs as
processes each has one; else they share the CPU, where the figures tell what the exchange costs and nothing about how
training scales.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import host

SIZES = {"dim": 512, "ffn_dim": 2048, "layers": 6}
TOY_SIZES = {"dim": 128, "ffn_dim": 256, "layers": 2}
LATENT_FHW, TOY_LATENT_FHW = (1, 32, 32), (1, 4, 6)
STEPS, TOY_STEPS = 20, 4
WARM = 2
"""Steps that are not counted."""
BATCH = 4
RANK = 32


def main() -> None:
    """Measure, print and write; with --worker be one of the processes."""
    options = host.parser("ranks", __doc__.splitlines()[0])
    options.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4], help="of processes (default: 1 2 4)")
    options.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.worker:
        _be_worker(options)
        return
    machine = host.start(options)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        file = _model(Path(folder), options.toy)
        for count in options.counts:
            for kind in ("whole", "shared out")[:1 + (count > 1)]:
                figures.append(_measured(options, Path(folder) / f"{count} {kind}", file, count, kind))
                print(*(f"  {name}: {value}" for name, value in figures[-1].items()), sep="\n", flush=True)
    host.write(options, "ranks", machine, {"ranks": figures})


def _model(folder: Path, is_toy: bool) -> Path:
    from wantune.tests.support import wan_models

    return wan_models.write("Wan2.1 T2V", folder / "wan.safetensors", **(TOY_SIZES if is_toy else SIZES))


def _measured(options, place: Path, file: Path, count: int, kind: str) -> dict:
    """The figures of so many processes: of each the median over its steps, and of these the largest."""
    place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = []
    for rank in range(count):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, "--worker", str(file), kind, "--out", str(place / f"{rank}.json"),
                   "--threads", str(options.threads), *(["--toy"] if options.toy else [])]
        workers.append(subprocess.Popen(command, env=environment))
    if any([worker.wait() for worker in workers]):
        sys.exit(f"One of {count} processes failed; see above.")
    each = [json.loads((place / f"{rank}.json").read_text()) for rank in range(count)]
    return {"processes": count, "weights": kind, **{name: max(found[name] for found in each) for name in each[0]}}


def _be_worker(options) -> None:
    import types

    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (host.ROOT, host.ROOT / "bench")]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(host.ROOT)]
    sys.modules["wantune"] = pack
    from wantune.demo import launch

    launch.prepare_imports()
    import torch

    from wantune.trainer.training.launch import launched

    torch.set_num_threads(options.threads)
    file, kind = options.worker
    has_gpus = torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"])
    with launched(is_on_cpu=not has_gpus) as ranks:
        device = torch.device("cuda", torch.cuda.current_device()) if has_gpus else torch.device("cpu")
        figures = _figures(ranks, Path(file), kind, device, options)
    options.out.write_text(json.dumps(figures))


class Spent:
    """Seconds within functions, of each step."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.steps: list[dict[str, float]] = []
        self._synchronize = synchronize

    def within(self, name: str, function: Callable) -> Callable:
        """The function, whose calls are added under a name to those of the present step."""
        def measured(*arguments, **options):
            self._synchronize()
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._synchronize()
                if self.steps:  # what they exchange before the first one does not count
                    self.steps[-1][name] = self.steps[-1].get(name, 0.0) + time.perf_counter() - start

        return measured


def _figures(ranks, file: Path, kind: str, device, options) -> dict[str, float]:
    import torch

    from wantune.tests.support import wan_models
    from wantune.tests.support.runs import driven
    from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
    from wantune.trainer.training import loop
    from wantune.trainer.training.run import Run
    from wantune.trainer.wan_diffusers.denoiser import DiffusersDenoiser
    from wantune.trainer.wan_diffusers.loading import family_of_transformer, load_transformer
    from wantune.trainer.wan_diffusers.sharded import ShardedDenoiser

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = load_transformer(file, dtype, torch.device("cpu") if kind != "whole" else device)
    of_blocks = sum(value.nbytes for value in transformer.blocks.parameters())
    family = family_of_transformer(transformer)
    denoiser = (DiffusersDenoiser if kind == "whole" else ShardedDenoiser)(transformer, family, device)
    latent, steps = (TOY_LATENT_FHW, TOY_STEPS) if options.toy else (LATENT_FHW, STEPS)
    place = options.out.with_suffix("")
    dataset = wan_models.dataset("Wan2.1 T2V", place / "data", [latent] * BATCH)
    config = TrainConfig(epochs=steps + WARM, max_steps=steps + WARM, batch_size=BATCH, lora=LoraConfig(rank=RANK),
                         validation=ValidationConfig(every_minutes=0, every_epochs=0, evaluate_epochs=0))
    spent = Spent(torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    train_step = spent.within("step", loop.Trainer.train_step)

    def counted(trainer) -> None:
        spent.steps.append({})
        train_step(trainer)

    loop.Trainer.train_step = counted
    loop.Trainer._backward = spent.within("forward and backward", loop.Trainer._backward)
    loop.Trainer._update = spent.within("optimizer", loop.Trainer._update)
    if ranks.count > 1:
        ranks._begin = spent.within("waiting for the others", ranks._begin)
        ranks.sum = spent.within("waiting and summing", ranks.sum)
    with Run(denoiser, dataset, "ranks", config, place / "runs", ranks=ranks) as run:
        driven(run)
    gradients = 4 * sum(value.numel() for name, value in run.lora.items() if not name.endswith(".alpha"))
    share = (ranks.count - 1) / ranks.count
    figures = {f"{name}, ms": round(1000 * statistics.median(step.get(name, 0.0) for step in spent.steps[WARM:]), 2)
               for name in ("step", "forward and backward", "waiting for the others", "waiting and summing",
                            "optimizer")}
    return figures | {
        "bytes of gradients": gradients,
        "bytes a process sends a step for gradients": round(2 * share * gradients),
        "bytes a process receives a step for weights": round(2 * share * of_blocks) if kind != "whole" else 0,
        "bytes of blocks on each device": sum(
            getattr(value, "_local_tensor", value).nbytes for value in transformer.blocks.parameters()),
    }


if __name__ == "__main__":
    main()
