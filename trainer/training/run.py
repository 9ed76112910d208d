"""One run: from a model, a cache and settings to a LoRA, whoever drives it.

A run is its data, its model and those settings that change what is learned; it has a folder, goes on from what is
there, and is not trained a second time when it is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..base.errors import UserError, content_hash
from ..encoded.batches import batches_per_epoch, read_batch
from ..encoded.cache import CachedDataset
from ..lora import file as lora_file
from ..lora import keys as lora_keys
from ..model.adapters import Adapter
from ..model.backend import Denoiser
from ..runs import checkpoints
from ..runs.events import Event, Previewed, Started, StepDone
from ..runs.folder import RunFolder
from ..runs.state import Checkpoint
from ..settings.training import TrainConfig
from . import loop
from .loop import Trainer


class Previews(Protocol):
    """Who samples videos while a run goes on."""

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether videos are made after this step."""

    def make(self, step: int, name: str) -> Previewed:
        """Sample with the model as it is now, into the run's folder."""


class Run:
    """A run that was opened: `events` trains what is left, `lora` and `losses` are what came of it.

    Args:
        name: of the folder; a run that is known already keeps the name it has.
        runs_folder: where runs lie.
        continued: a LoRA of any trainer to begin with; rank and alpha are then its own.
        restart: forget what was trained.

    Raises:
        UserError: the data or the LoRA to continue belong to another model, or the folder cannot be written to.
    """

    def __init__(
        self, denoiser: Denoiser, dataset: CachedDataset, name: str, config: TrainConfig, runs_folder: Path,
        continued: Mapping[str, torch.Tensor] | None = None, restart: bool = False,
    ) -> None:
        _check_data(denoiser, dataset)
        self._start: dict[str, torch.Tensor] = {}
        if continued is not None:
            lora, self._start = lora_file.continued(
                lora_keys.normalize(continued), config.lora, denoiser.linear_sizes())
            config = replace(config, lora=lora)
        self.config = config
        self.stop = False
        """Set by the driver: end after the present step."""
        self._denoiser = denoiser
        self._dataset = dataset
        base_digest = denoiser.id
        key = content_hash(dataset.digest, base_digest, config.identity())
        self.folder = RunFolder(runs_folder, name, key, config.to_dict())
        if restart:
            self.folder.restart()
        self.base_model = lora_keys.describe_model(denoiser.linear_sizes())
        """What it is trained on, in words."""
        self._metadata = lora_file.metadata(config, dataset, name, self.base_model, base_digest, 0)
        self.folder.keep_metadata(self._metadata)
        batches = batches_per_epoch(dataset.samples, config.batch_size)
        self._found = self.folder.resume(loop.total_steps(config, batches))
        self._learned = self._found.checkpoint if self._is_over(batches) else None
        self.losses = self._found.losses if self._learned else []
        """The finite loss of each step done."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train, so that no model is needed."""
        return self._learned is not None

    @property
    def steps(self) -> int:
        """Done so far; only when finished or after `events`."""
        return self._learned.step

    @property
    def lora(self) -> lora_file.LoraStateDict:
        """What was learned, with the metadata of a file; only when finished or after `events`."""
        return checkpoints.of_adapter(self._learned.adapter, self.config.lora, self._metadata, self._learned.step)

    def events(self, previews: Previews | None = None) -> Iterator[Event]:
        """Train to the end, or until `stop` is set; however it ends, what was learned is in the run's folder.

        The driver holds `torch.inference_mode(False)`, where its framework runs it in inference mode, and closes the
        generator when it breaks off.
        """
        denoiser, config = self._denoiser, self.config
        linears = denoiser.linears()
        adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
        adapter.start_from(self._start)  # before the trainer, which copies the parameters into its average
        trainer = Trainer(config, denoiser, adapter, self._dataset, self.folder, self._found)
        tokens = max(denoiser.family.num_tokens(sample.bucket) for sample in self._dataset.samples)
        memory = denoiser.memory_estimate(tokens, config.batch_size, adapter, config.gradient_checkpointing)
        attached = denoiser.attached(adapter, linears, config.gradient_checkpointing, memory)
        with attached, closing(trainer.run()) as events:
            for event in events:
                yield event
                if previews is not None:
                    yield from _previewed(trainer, previews, event)
                trainer.stop = self.stop
        self._learned = Checkpoint(trainer.step, trainer.adapter_state(), {})
        self.losses = trainer.losses

    def _is_over(self, batches: int) -> bool:
        done = self._found.checkpoint
        if done is None:
            return False
        return (done.step == loop.total_steps(self.config, batches)
                or loop.is_over(self.config, done.state["judge"]["since_best"]))


def _previewed(trainer: Trainer, previews: Previews, event: Event) -> Iterator[Previewed]:
    """Sample what is learned so far when its time has come, and once the model without it."""
    if isinstance(event, Started) and not event.step:
        with trainer.adapter.switched_off():
            made = previews.make(0, "base")
    elif isinstance(event, StepDone) and previews.is_due(event.step, trainer.total_steps, trainer.steps_per_epoch):
        with trainer.averages.in_place():
            made = previews.make(event.step, f"step_{event.step:06d}")
    else:
        return
    trainer.folder.log(made)
    for number, name in enumerate(made.files):
        with Image.open((trainer.folder.path / name).with_suffix(".jpg")) as strip:
            trainer.scalars.add_picture(f"prompt {number + 1}", np.asarray(strip), event.step)
    yield made


def _check_data(denoiser: Denoiser, dataset: CachedDataset) -> None:
    family = denoiser.family
    if dataset.family.name != family.name:
        raise UserError(f"The dataset was cached for {dataset.family.name}, the model is {family.name}; cache it for "
                        "this model.")
    batch = read_batch([dataset.samples[0].visit(0)], family.conditions)
    num_channels = batch.latent_BCFHW.shape[1]
    if num_channels != family.latent_channels:
        raise UserError(f"The cached latents have {num_channels} channels, the model takes {family.latent_channels}; "
                        "cache with the VAE that belongs to the model.")
    text_BLD = batch.conditions.get("text")
    if text_BLD is not None and text_BLD.shape[2] != family.text_width:
        raise UserError(f"The cached captions are {text_BLD.shape[2]} wide, the model takes {family.text_width}; cache "
                        "with the UMT5 text encoder (Load CLIP: umt5_xxl, type wan).")
