"""What the benches train and how WanTune trains it: a transformer, a random dataset, whole steps of the node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
import torch

from ..nodes.backend.denoiser import ComfyDenoiser
from ..nodes.backend.products import EXACT
from ..nodes.page.live import Live
from ..nodes.train import train
from ..tests.support import tools
from ..trainer.adapter.adapters import Adapter
from ..trainer.blocks.compiled_pieces import AUTO
from ..trainer.data.buckets import Bucket
from ..trainer.encoded import cache, store
from ..trainer.memory.plan import Plan
from ..trainer.model.wan21 import WAN21_T2V
from ..trainer.runs.events import Event
from ..trainer.runs.folder import RunFolder, delete_run
from ..trainer.settings.memory import MemoryConfig
from ..trainer.settings.training import LoraConfig, ObjectiveConfig, TrainConfig, ValidationConfig
from ..trainer.training.loop import Trainer
from . import plans

RANK = 32
TEXT_TOKENS = 40
"""Of a caption of usual length."""
EACH_BLOCK = MemoryConfig(whole_blocks=0, segments="block", keep_attention="off", inputs_in_ram="off")
"""Gradient checkpointing as others do it, also where there is memory for faster ways."""
ITEMS = 4
"""Samples of the dataset."""


class Data:
    """Pictures or clips that are encoded already, all random, and the settings with which they are trained on.

    Args:
        folder: for their files and for runs.
        size_FHW: latent frames, rows and columns.
    """

    def __init__(self, folder: Path, size_FHW: tuple[int, int, int], batch_size: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.set_output_directory(str(folder))  # where the node puts its runs
        self.folder = folder
        self.batch_size = batch_size
        self.dataset = _random_dataset(folder, size_FHW)

    @property
    def num_tokens(self) -> int:
        """Of one latent."""
        return self.dataset.family.num_tokens(self.dataset.samples[0].bucket)

    def config(self, checkpointing: bool, steps: int) -> TrainConfig:
        """The node's own settings, but for the number of steps, and without checkpoints by time."""
        return TrainConfig(
            epochs=steps, max_steps=steps, batch_size=self.batch_size, gradient_checkpointing=checkpointing,
            lora=LoraConfig(rank=RANK, alpha=RANK), validation=ValidationConfig(every_minutes=0.0))

    def train(self, model, checkpointing: bool, steps: int) -> None:
        """All that the node Train Wan LoRA does; with checkpointing each block is computed again."""
        for before in self.folder.glob("wantune/bench-*"):
            delete_run(before)
        config = self.config(checkpointing, steps)
        if checkpointing:
            config = replace(config, memory=EACH_BLOCK)
        train(model, self.dataset, "bench", config, Live(None))


class Case(Data):
    """`Data` and the file of a transformer.

    Args:
        dit: sizes of a transformer of random weights to make, or None for the one of the small world.
    """

    def __init__(self, folder: Path, dit: dict | None, size_FHW: tuple[int, int, int]) -> None:
        super().__init__(folder, size_FHW)
        self.path = tools.random_dit(folder, **dit) if dit else tools.WORLD / "dit.safetensors"


@dataclass
class Run:
    """Training that has begun: each `step` is a whole step of the node with its log line and display."""

    model: object
    denoiser: ComfyDenoiser
    adapter: Adapter
    events: Iterator[Event]
    live: Live

    def step(self) -> None:
        """Batch, noise, forward, backward, AdamW, schedule, log line, display."""
        self.live.publish(next(self.events))


@contextmanager
def running(
    case: Data, model, plan: Plan, steps: int, compiled: str = AUTO, products: str = EXACT,
    objective: ObjectiveConfig | None = None,
) -> Iterator[Run]:
    """Our training, one step at a time, as trainer/training/run.py and nodes/train.py do it.

    Args:
        compiled, products: as of ComfyDenoiser's `compile` and `products`.
    """
    config = replace(case.config(plan != plans.OFF, steps), objective=objective or ObjectiveConfig())
    denoiser = ComfyDenoiser(model)
    denoiser.compile, denoiser.products = compiled, products
    linears = denoiser.linears()
    needed = plans.planned(denoiser, config.lora, case.num_tokens, case.batch_size, plan)
    denoiser.make_room(needed)
    adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
    folder = RunFolder(case.folder / "steps")
    if folder.path.exists():
        delete_run(folder.path)
    folder.path.mkdir()
    trainer = Trainer(config, denoiser, adapter, case.dataset, folder, folder.resume(0))
    with denoiser.attached(adapter, linears, plan, needed), closing(trainer.run()) as events:
        run = Run(model, denoiser, adapter, events, Live(None))
        run.step()  # Started
        yield run


def _random_dataset(folder: Path, size_FHW: tuple[int, int, int]) -> cache.CachedDataset:
    frames, rows, columns = size_FHW
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(ITEMS):
        sample = cache.CachedSample(
            name=f"{index}.png",
            bucket=Bucket(frames=4 * (frames - 1) + 1, height=8 * rows, width=8 * columns),
            repeats=1,
            latent_paths=(folder / f"latent_{index}.safetensors",),
            captions=({"text": folder / f"text_{index}.safetensors"},),
            prior_captions=({"text": folder / f"prior_{index}.safetensors"},),
        )
        store.write_tensor(sample.latent_paths[0], torch.randn(16, *size_FHW, generator=generator))
        for by_kind in (*sample.captions, *sample.prior_captions):
            store.write_tensor(by_kind["text"], torch.randn(TEXT_TOKENS, 4096, generator=generator))
        samples.append(sample)
    return cache.CachedDataset(
        family=WAN21_T2V, samples=tuple(samples), held_out=(), digest="random", trigger_word="",
        captions=("",) * ITEMS
    )
