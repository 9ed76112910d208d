"""One run: from a model, a cached dataset and settings to a LoRA.

A run is identified by its data, its base model and those settings that change what is learned (`identity`). It has a
folder, resumes from the checkpoint there, and is not trained again once it is finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..adapter.adapters import Adapter
from ..base.errors import UserError
from ..base.out_of_memory import is_out_of_memory
from ..encoded.batches import batches_per_epoch, read_batch
from ..encoded.cache import CachedDataset
from ..lora import file as lora_file
from ..lora import keys as lora_keys
from ..lora import made_for
from ..model.backend import Denoiser
from ..runs import checkpoints, history
from ..runs.attempts import Wanted, open_run
from ..runs.events import Event, Paused, Previewed, Started, StepDone
from ..runs.folder import Found
from ..runs.state import Checkpoint
from ..settings.training import TrainConfig
from . import experts, identity, length
from .loop import Trainer
from .memory import MemoryPlan, Shown, lasting_bytes
from .retry import enough_memory_to_begin, left_out


class Previews(Shown, Protocol):
    """Samples preview videos during a run."""

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether videos are sampled after this optimizer step."""

    def make(self, step: int, name: str) -> Previewed:
        """Sample with the current weights, into the run's folder.

        Args:
            name: how the files' names begin, such as "step_000400".
        """


class Run:
    """An opened run: `events` trains the remaining steps; `lora` and `losses` are the result.

    It is locked until `events` ends or is closed, or until `close`.

    Args:
        name: of the run and its folder; a run that has a folder already keeps its name.
        runs_folder: the folder that holds the folders of all runs.
        continued: a LoRA of any trainer to start from; its rank and alpha replace those of `config`.
        attempt: the number of the attempt, which is made if there is none; 0 for the newest.
        restart: where `attempt` is 0: the newest attempt but not the first, so that the same again goes on with it.
        model_file: the name of the model's file, the only thing that tells an expert of Wan2.2 from Wan2.1.

    A caller whose framework enables inference mode must hold `torch.inference_mode(False)` from here to the end of
    `events`: what is read from a checkpoint is trained on.

    Raises:
        UserError: the data or the LoRA to continue belong to another model, another process trains the run, the folder
            cannot be written to, or no step of the finished run was finite.
    """

    def __init__(
        self, denoiser: Denoiser, dataset: CachedDataset, name: str, config: TrainConfig, runs_folder: Path,
        continued: Mapping[str, torch.Tensor] | None = None, restart: bool = False, attempt: int = 0,
        model_file: str = "",
    ) -> None:
        _check_data(denoiser, dataset)
        self._start: dict[str, torch.Tensor] = {}
        if continued is not None:
            lora, self._start = lora_file.continued(
                lora_keys.normalize(continued), config.lora, denoiser.linear_sizes())
            config = replace(config, lora=lora)
        self.expert = experts.expert_of(config.objective)
        """Which expert of Wan2.2 A14B is trained, one of experts.EXPERTS; "" where nobody said."""
        self._note = experts.note_of_name(config.objective, model_file)
        config = replace(config, objective=experts.in_numbers(config.objective, denoiser.family))
        self.config = config
        self.stop = False
        """Set by the caller of `events`: end after the current step."""
        self.pause_at = 0
        """Set by the caller of `events`: yield Paused after this step, and wait there for as long as it takes."""
        told = made_for.told_by_name(model_file)
        self.base_model = made_for.describe_model(denoiser.linear_sizes()) + (
            f"; by its file's name {told}" if told else "")
        """The base model in words, such as "Wan2.1 1.3B of width 1536 with 30 blocks"."""
        self._denoiser = denoiser
        self._memory: MemoryPlan | None = None
        self._metadata = lora_file.metadata(config, dataset, name, self.base_model, denoiser.id, 0, self.expert)
        total = length.total_steps(config, batches_per_epoch(dataset.samples, config.batch_size))
        keys = identity.keys(config, dataset, denoiser.id, total)
        wanted = Wanted(name=name, keys=keys, config=config.to_dict(), attempt=attempt, restart=restart,
                        total_steps=total, is_length_fixed=config.optimizer.depends_on_length)
        opened = open_run(runs_folder, wanted, partial(_is_over, config, total))
        self.folder = opened.folder
        self._lock = opened.lock
        # runs from before took samples in the order of their names, and go on so
        self._dataset = dataset.by_content() if opened.key == keys[0] else dataset
        self._found = opened.found
        self._learned = self._found.checkpoint if self._lock is None else None
        self._trainer: Trainer | None = None
        self.losses = self._found.losses if self._learned else []
        """The finite losses of the steps done."""
        if self._learned:
            length.check_learned(self._learned.step, self._learned.state["skipped"])
            self._mark_best(self._learned.state["judge"])

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_error) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the run."""
        if self._lock is not None:
            self._lock.release()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about how it is trained that the user should know."""
        fault = self._lock.fault if self._lock is not None else ""
        return tuple(filter(None, (fault, self._note, self._memory and self._memory.told())))

    def memory_plan(self, previews: Previews | None = None, beside: int = 0) -> MemoryPlan:
        """What is kept of forward passes; chosen when this is first called, by what is free then.

        Args:
            beside: bytes on the device for something else that will be there as long as the run.

        Raises:
            UserError: the run does not fit.
        """
        if self._memory is None:
            self._memory = MemoryPlan(self._denoiser, self._dataset, self.config, previews, beside)
        return self._memory

    @property
    def lasting_bytes(self) -> int:
        """What is on the device from the first step to the last, beside the weights of the model."""
        return lasting_bytes(self._denoiser, self.config)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train, so that the model need not be loaded."""
        return self._learned is not None

    @property
    def steps(self) -> int:
        """Optimizer steps done; only when finished or after `events`."""
        return self._learned.step

    @property
    def lora(self) -> lora_file.LoraStateDict:
        """The trained LoRA with the metadata of its file; only when finished or after `events`."""
        return checkpoints.of_adapter(self._learned.adapter, self.config.lora, self._metadata, self._learned.step)

    @property
    def lora_so_far(self) -> lora_file.LoraStateDict | None:
        """As `lora`, also between steps and before `events`; None where nothing has been learned yet."""
        learned = self._learned or (_learned_by(self._trainer) if self._trainer else self._found.checkpoint)
        if not learned or not learned.step:
            return None
        return checkpoints.of_adapter(learned.adapter, self.config.lora, self._metadata, learned.step)

    def events(self, previews: Previews | None = None) -> Iterator[Event]:
        """Train to the end, or until `stop` is set; the last finished step is saved in the run's folder in any case.

        A caller that aborts must close the generator.

        Raises:
            UserError: as `Trainer.run` and `Trainer.train_step`.
        """
        denoiser, config = self._denoiser, self.config
        self.folder.keep_metadata(self._metadata)
        memory = self.memory_plan(previews)
        with closing(self), enough_memory_to_begin():
            memory.make_room()  # before the adapter and what the optimizer remembers are put there
            linears = denoiser.linears()
            adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
            adapter.start_from(self._start)  # before the trainer, which copies the parameters into its average
            trainer = Trainer(config, denoiser, adapter, self._dataset, self.folder, self._found, memory.step_down)
            self._trainer = trainer
            del self._found  # its tensors would stay in memory while it trains
            attached = denoiser.attached(adapter, linears, memory.plan, memory.to_come)
            is_awaited = partial(_is_preview_due, trainer, previews)
            with attached, closing(trainer.run(is_awaited)) as events:
                for event in events:
                    if isinstance(event, StepDone):
                        memory.keep_free()
                    yield event
                    if previews is not None:
                        yield from _previewed(trainer, previews, event)
                    trainer.stop, trainer.pause_at = self.stop, self.pause_at
                    if isinstance(event, Paused) and not self.stop:
                        denoiser.reload()  # another model may have displaced it
        self._learned = _learned_by(trainer)
        self.losses = trainer.results.losses

    def leave_off(self) -> None:
        """In the place of `events`: train nothing; `lora` and `losses` are those of the last checkpoint.

        Where there is none, it is a LoRA without effect.
        """
        with closing(self):
            self._learned, self.losses = self._found.checkpoint, self._found.losses
            if self._learned is None:
                adapter = Adapter(self.config.lora, self._denoiser.linears(), self._denoiser.device, self.config.seed)
                adapter.start_from(self._start)
                self._learned = Checkpoint(0, adapter.state_dict(), {})

    def _mark_best(self, judge: Mapping) -> None:
        """Where it is not done: a full disk or a power cut may have come between the last checkpoint and that."""
        marked = history.read_json(self.folder.path / "best.json").get("loss", math.inf)
        if judge["best_step"] and judge["best_loss"] < marked:
            self.folder.mark_best(judge["best_step"], judge["best_loss"])


def _learned_by(trainer: Trainer) -> Checkpoint:
    return Checkpoint(trainer.step, trainer.adapter_state(), {})


def _is_over(config: TrainConfig, total_steps: int, found: Found) -> bool:
    done = found.checkpoint
    if done is None:
        return False
    return done.step == total_steps or length.is_over(config, done.state["judge"]["since_best"])


def _is_preview_due(trainer: Trainer, previews: Previews | None, step: int) -> bool:
    return bool(previews and step and previews.is_due(step, trainer.total_steps, trainer.steps_per_epoch))


def _previewed(trainer: Trainer, previews: Previews, event: Event) -> Iterator[Event]:
    """Sample previews after an event where they are due, and before the first step those of the model alone."""
    is_due = _is_preview_due(trainer, previews, event.step)
    if isinstance(event, Started) and not event.step:
        weights, name = trainer.adapter.switched_off(), "base"
    # at the start: Cancel preempted the one of the last step
    elif isinstance(event, (Started, StepDone)) and is_due and not trainer.is_logged("Previewed", event.step):
        weights, name = trainer.averages.in_place(), f"step_{event.step:06d}"
    else:
        return
    try:
        with weights:
            made = previews.make(event.step, name)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        made = left_out(event.step, error)
    trainer.folder.log(made)
    for number, file in enumerate(made.files if isinstance(made, Previewed) else ()):
        with Image.open((trainer.folder.path / file).with_suffix(".jpg")) as strip:
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
