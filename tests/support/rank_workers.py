"""A process that has loaded torch and accelerate once, and forks several that train or cache together for each command.

Started by ranked.py as `python rank_workers.py`. Each line on stdin is a command in JSON: the name of a function below,
the number of processes, a folder and further arguments. It prints for each process its exit code and the seconds after
which it ended. What a process says goes to `said.<rank>` of the folder, what comes of it to `result.<rank>.json`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EVERY = {"every_minutes": 0, "every_steps": 3, "evaluate_epochs": 0, "evaluate_steps": 4, "keep_last": 99}

CASES = {
    "adamw, accumulation": {"optimizer": {"accumulation": 2, "max_grad_norm": 0.5, "warmup_steps": 2}},
    "preserving": {"objective": {"preserve": 0.5, "preserve_every": 2, "stratified": True, "noise_offset": 0.1,
                                 "weighting": "bell"}, "optimizer": {"warmup_steps": 2}},
    "average, many matrices": {"optimizer": {"ema_decay": 0.9, "warmup_steps": 2}, "lora": {"rank": 4, "kind": "loha"}},
}


def main() -> None:
    """Serve until stdin ends."""
    ours = (ROOT, ROOT / "tests", ROOT / "tests" / "support")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in ours]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack
    from wantune.demo import launch

    launch.prepare_imports()
    import accelerate  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401
    from diffusers import WanTransformer3DModel  # noqa: F401
    from diffusers.training_utils import EMAModel  # noqa: F401

    from wantune.trainer.training import run  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    gc.collect()
    gc.freeze()  # so that no process copies the memory of all objects only to look at them
    print("ready", flush=True)
    for line in sys.stdin:
        name, count, place, arguments = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start, children = time.perf_counter(), {}
        for rank in range(count):
            children[os.fork()] = rank
            if 0 in children:
                code = worker(name, rank, count, port, Path(place), arguments)
                if arguments.get("at"):
                    sys.exit(code)  # as a program ends, which must not wait for the others
                os._exit(code)  # faster
        ended = {}
        while children:
            child, status = os.wait()
            ended[children.pop(child)] = os.waitstatus_to_exitcode(status), time.perf_counter() - start
        print(json.dumps([ended[rank] for rank in range(count)]), flush=True)


def worker(name: str, rank: int, count: int, port: int, place: Path, arguments: dict) -> int:
    """One of the processes, from its environment to its exit code."""
    place.mkdir(parents=True, exist_ok=True)
    said = os.open(place / f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if count > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
    os.environ.update(arguments.pop("environment", {}))
    from wantune.trainer.base.errors import UserError
    from wantune.trainer.training.launch import launched

    try:
        _unequal(rank, arguments.get("unequal", ""))
        with launched(is_on_cpu=True) as ranks:
            result = {"train": train, "train_wan": train_wan, "fill": fill}[name](ranks, place, **arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    (place / f"result.{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def _unequal(rank: int, what: str) -> None:
    if rank and what == "version":
        import torch

        torch.__version__ = "1.0"


def data(place: Path, count: int = 7):
    """Latents of two sizes, some with a mask, three of them held out."""
    from wantune.tests.support import small_model

    dataset = small_model.dataset(place, count, held_out=3)
    mask = dataset.samples[1].mask_path
    return replace(dataset, samples=tuple(replace(sample, mask_path=mask if number % 3 == 0 else None)
                                          for number, sample in enumerate(dataset.samples)))


def config(case: str, **settings):
    """Twelve steps in batches of three, so that each epoch has one that is shorter than the number of processes."""
    from wantune.trainer.settings.training import (
        LoraConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainConfig,
        ValidationConfig,
    )

    case = CASES[case]
    return TrainConfig(**{
        "epochs": 99, "max_steps": 12, "batch_size": 3, "learning_rate": 1e-2, "seed": 3,
        "lora": LoraConfig(**{"rank": 4, "alpha": 4.0, **case.get("lora", {})}),
        "optimizer": OptimizerConfig(**case.get("optimizer", {})),
        "objective": ObjectiveConfig(**case.get("objective", {})), "validation": ValidationConfig(**EVERY), **settings})


def train(
    ranks, place: Path, case: str, at: dict | None = None, unequal: str = "", settings: dict | None = None
) -> dict:
    """Train on `data`; what was learned, and the steps that this process has done.

    Args:
        at: {"rank", "step", "what": "stop", "cancel", "kill", "kill in backward" or "error in backward"}.
    """
    from contextlib import closing

    from wantune.tests.support.small_model import SmallModel
    from wantune.trainer.base.errors import UserError
    from wantune.trainer.runs.events import Started, StepDone
    from wantune.trainer.training.run import Run

    at = at if at and at["rank"] == ranks.rank else None

    class Model(SmallModel):
        step = 0

        def velocity(self, *arguments):
            if at and at["step"] == self.step + 1 and at["what"].endswith("in backward"):
                if at["what"] == "error in backward":
                    raise UserError("This process has a fault.")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().velocity(*arguments)

    cached = data(place.parent / f"data {ranks.rank}")
    if unequal == "data" and ranks.rank:
        cached = replace(cached, digest="other")
    model = Model()
    with Run(model, cached, "run", config(case, **(settings or {})), place / "runs", ranks=ranks) as run:
        steps = []
        if not run.is_finished:
            with closing(run.events()) as events:
                for event in events:
                    if isinstance(event, Started):
                        model.step = event.step
                    if isinstance(event, StepDone):
                        steps.append(event.step)
                        model.step = event.step
                        if at and event.step == at["step"]:
                            if at["what"] == "cancel":
                                raise KeyboardInterrupt
                            if at["what"] == "kill":
                                os.kill(os.getpid(), signal.SIGKILL)
                            run.stop |= at["what"] == "stop"
        lora = {name: value.flatten().tolist() for name, value in run.lora.items()}
        return {"losses": run.losses, "lora": lora, "steps": steps, "batch_size": run.config.batch_size}


def train_wan(ranks, place: Path, file: str, is_sharded: bool = False) -> dict:
    """Train eight steps on a tiny Wan2.1 T2V in diffusers' transformer; what was learned, and how much of it lies here.

    Args:
        file: of the model, as ComfyUI has it.
        is_sharded: whether the processes share it out.
    """
    import torch

    from wantune.tests.support import on_diffusers, wan_models
    from wantune.tests.support.runs import driven
    from wantune.trainer.settings.training import LoraConfig, ObjectiveConfig, TrainConfig, ValidationConfig
    from wantune.trainer.training.run import Run
    from wantune.trainer.wan_diffusers.denoiser import DiffusersDenoiser
    from wantune.trainer.wan_diffusers.loading import family_of_transformer, load_transformer
    from wantune.trainer.wan_diffusers.sharded import ShardedDenoiser

    transformer = load_transformer(Path(file), torch.float32, on_diffusers.CPU)
    kind = ShardedDenoiser if is_sharded else DiffusersDenoiser
    denoiser = kind(transformer, family_of_transformer(transformer), on_diffusers.CPU)
    place.parent.mkdir(exist_ok=True)
    cached = wan_models.dataset("Wan2.1 T2V", place.parent / f"data {ranks.rank}", [(3, 4, 6), (3, 4, 6), (1, 6, 4)])
    validation = ValidationConfig(every_minutes=0, evaluate_epochs=0, evaluate_steps=4)
    settings = TrainConfig(epochs=99, max_steps=8, learning_rate=1e-3, batch_size=2, validation=validation,
                           lora=LoraConfig(rank=4, alpha=4.0), objective=ObjectiveConfig(weighting="bell"))
    cached = replace(cached, held_out=cached.samples[:1])
    with Run(denoiser, cached, "wan", settings, place / "runs", ranks=ranks) as run:
        driven(run)
        lora = {name: value.flatten().tolist() for name, value in run.lora.items()}
    lies_here = [getattr(value, "_local_tensor", value).numel() for value in transformer.blocks.parameters()]
    return {"lora": lora, "losses": run.losses, "numbers": sum(lies_here), "counted": denoiser.size.weights}


def fill(ranks, place: Path, folder: str) -> dict:
    """Fill the cache `place`/cache from `folder`; what this process has encoded, and what the dataset is."""
    import torch

    from wantune.tests.support.tools import drained
    from wantune.trainer.data import scan
    from wantune.trainer.encoded.fill import fill
    from wantune.trainer.encoded.store import Store
    from wantune.trainer.settings.data import DatasetConfig

    encoded = []

    class Codec:
        id = "codec"

        def encode(self, pixels_FHW3):
            encoded.append(float(pixels_FHW3.mean()))
            frames, height, width, _ = pixels_FHW3.shape
            return torch.full((16, (frames - 1) // 4 + 1, height // 8, width // 8), encoded[-1])

    class Text:
        id = "text"

        def encode(self, caption):
            encoded.append(caption)
            return torch.full((1, 4096), float(len(caption)))

    manifest = scan.scan(DatasetConfig(folder=folder, resolution=64, trigger_word="zwx", validation_items=1))
    ranks.gathered({})  # all have seen it
    if ranks.rank == 0:
        for broken in Path(folder).glob("gone*"):
            broken.unlink()
    _, dataset = drained(fill(manifest, Store(place / "cache"), Codec(), {"text": Text()}, ranks))
    return {"encoded": encoded, "digest": dataset.digest, "left_out": [each.reason for each in dataset.left_out],
            "names": [sample.name for sample in (*dataset.samples, *dataset.held_out)]}


if __name__ == "__main__":
    main()
