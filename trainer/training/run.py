"""One run: from a model, a cached dataset and settings to a LoRA.

A run is identified by its data, its base model and those settings that change what is learned (`identity`). It has a
folder, resumes from the checkpoint there, and is not trained again once it is finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..adapter.adapters import Adapter
from ..encoded.batches import batches_per_epoch
from ..encoded.cache import CachedDataset
from ..lora import file as lora_file
from ..lora import keys as lora_keys
from ..lora import made_for
from ..model.backend import Denoiser
from ..runs import checkpoints, elsewhere, history
from ..runs.attempts import Wanted, open_run
from ..runs.events import Event, Noted, Paused, Started, StepDone
from ..runs.folder import Found
from ..runs.state import Checkpoint
from ..settings.training import TrainConfig
from . import batch_size, experts, identity, length
from .loop import Trainer
from .memory import MemoryPlan, Shown, lasting_bytes
from .previews import Previews, is_due, previewed
from .ranks import ALONE, Ranks
from .retry import enough_memory_to_begin
from .suited import suited


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
        previews: what of them counts for memory, where the batch size is left to the run; None where there are none.
        ranks: the processes that train it, each of which makes a Run of the same arguments: `batch_size` is of all
            together, and the first one alone needs the folder of all runs.

    A caller whose framework enables inference mode must hold `torch.inference_mode(False)` from here to the end of
    `events`: what is read from a checkpoint is trained on.

    Raises:
        UserError: the data or the LoRA to continue belong to another model, another process trains the run, the folder
            cannot be written to, or no step of the finished run was finite; processes differ in data, model or
            settings, or one of them has ended.
    """

    def __init__(
        self, denoiser: Denoiser, dataset: CachedDataset, name: str, config: TrainConfig, runs_folder: Path,
        continued: Mapping[str, torch.Tensor] | None = None, restart: bool = False, attempt: int = 0,
        model_file: str = "", previews: Shown | None = None, ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        """The processes that train it."""
        dataset, self._data_notes = suited(denoiser, dataset)
        self._start: dict[str, torch.Tensor] = {}
        if continued is not None:
            lora, self._start = lora_file.continued(
                lora_keys.normalize(continued), config.lora, denoiser.linear_sizes())
            config = replace(config, lora=lora)
        self.expert = experts.expert_of(config.objective)
        """Which expert of Wan2.2 A14B is trained, one of experts.EXPERTS; "" where nobody said."""
        self._note = experts.note_of_name(config.objective, model_file)
        config = replace(config, objective=experts.in_numbers(config.objective, denoiser.family))
        keys = identity.keys(config, dataset, denoiser.id)
        ranks.check_same({"data": dataset.digest, "base model": denoiser.id, "settings": keys[0]})
        self._batch_size = ranks.of_first(
            lambda: batch_size.of_run(config, denoiser, dataset, runs_folder, keys, previews, ranks.count))
        kept = config.to_dict()
        if self._batch_size is not None:
            kept[batch_size.CHOSEN] = self._batch_size.number
            config = replace(config, batch_size=self._batch_size.number)
        self.config = config
        self.stop = False
        """Set by the caller of `events`: end after the current step."""
        self.pause_at = 0
        """Set by the caller of `events`: yield Paused after this step, and wait there for as long as it takes."""
        self.base_model = made_for.base_model(denoiser.family.name, denoiser.linear_sizes(), model_file)
        """The base model in words, such as "Wan2.1 1.3B of width 1536 with 30 blocks"."""
        self._denoiser = denoiser
        self._memory: MemoryPlan | None = None
        self._trainer: Trainer | None = None
        self._metadata = lora_file.metadata(config, dataset, name, self.base_model, denoiser.id, 0, self.expert)
        total = length.total_steps(config, batches_per_epoch(dataset.samples, config.batch_size))
        wanted = Wanted(name=name, keys=keys, config=kept, attempt=attempt, restart=restart,
                        total_steps=total, is_length_fixed=config.optimizer.depends_on_length)
        opened = ranks.of_first(
            lambda: open_run(runs_folder, wanted, partial(_is_over, config, total)), elsewhere.told)
        self.folder = opened.folder
        self._lock = opened.lock
        # runs from before took samples in the order of their names, and go on so
        self._dataset = dataset.by_content() if opened.key == keys[0] else dataset
        self._found = opened.found
        self._learned = self._found.checkpoint if self._lock is None else None
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
        chosen = self._batch_size and self._batch_size.told()
        return tuple(filter(None, (fault, *self._data_notes, self._note, chosen, self._memory and self._memory.told())))

    def memory_plan(self, previews: Previews | None = None, beside: int = 0) -> MemoryPlan:
        """What is kept of forward passes; chosen when this is first called, by what is free then.

        Args:
            beside: bytes on the device for something else that will be there as long as the run.

        Raises:
            UserError: the run does not fit.
        """
        if self._memory is None:
            config = replace(self.config, batch_size=self.ranks.most_rows(self.config.batch_size))
            self._memory = MemoryPlan(self._denoiser, self._dataset, config, previews, beside)
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
            trainer = Trainer(
                config, denoiser, adapter, self._dataset, self.folder, self._found, memory.step_down, self.ranks)
            self._trainer = trainer
            del self._found  # its tensors would stay in memory while it trains
            attached = denoiser.attached(adapter, linears, memory.plan, memory.to_come)
            previews = previews if self.ranks.is_first else None
            is_awaited = partial(is_due, trainer, previews)
            with attached as notes, closing(trainer.run(is_awaited)) as events:
                for event in events:
                    if isinstance(event, StepDone):
                        memory.keep_free()
                    yield event
                    if isinstance(event, Started):
                        yield from _noted(trainer, notes)
                    if previews is not None:
                        yield from previewed(trainer, previews, event, self._lora_of)
                    trainer.stop, trainer.pause_at = self.stop, self.pause_at
                    if isinstance(event, Paused) and not self.stop:
                        denoiser.reload()  # another model may have displaced it
        self._learned, self._trainer = _learned_by(trainer), None
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

    def _lora_of(self, trainer: Trainer) -> lora_file.LoraStateDict:
        return checkpoints.of_adapter(trainer.adapter.state_dict(), self.config.lora, self._metadata, trainer.step)

    def _mark_best(self, judge: Mapping) -> None:
        """Where it is not done: a full disk or a power cut may have come between the last checkpoint and that."""
        marked = history.read_json(self.folder.path / "best.json").get("step", 0)
        if judge["best_step"] > marked:  # what is the best later is better
            self.folder.mark_best(judge["best_step"], judge["best_loss"], judge.get("best_learned", math.nan))


def _learned_by(trainer: Trainer) -> Checkpoint:
    return Checkpoint(trainer.step, trainer.adapter_state(), {})


def _is_over(config: TrainConfig, total_steps: int, found: Found) -> bool:
    done = found.checkpoint
    if done is None:
        return False
    return done.step == total_steps or length.is_over(config, done.state["judge"]["since_best"])


def _noted(trainer: Trainer, notes: Sequence[str]) -> Iterator[Noted]:
    """Sentences about how it is trained, for the log and the page."""
    for sentence in notes:
        note = Noted(trainer.step, sentence)
        trainer.folder.log(note)
        yield note
