"""When previews are sampled in a run, with which weights, and where they are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from ..base.out_of_memory import is_out_of_memory
from ..lora.file import LoraStateDict
from ..runs.events import BASE, Event, Noted, Previewed, Started, StepDone
from .loop import Trainer
from .memory import Shown
from .retry import left_out


class Previews(Shown, Protocol):
    """Samples preview videos during a run."""

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether videos are sampled after this optimizer step."""

    def make(self, step: int, name: str, lora: Callable[[], LoraStateDict] | None) -> tuple[Previewed | Noted, ...]:
        """Sample with the current weights, into the run's folder; what came of it, and what was left out.

        Args:
            name: how the files' names begin, such as "step_000400".
            lora: copies the current weights as the LoRA that the run would give now; None for the model alone.
        """


def is_due(trainer: Trainer, previews: Previews | None, step: int) -> bool:
    """Whether previews are sampled after this step; never before the first one."""
    return bool(previews and step and previews.is_due(step, trainer.total_steps, trainer.steps_per_epoch))


def previewed(
    trainer: Trainer, previews: Previews, event: Event, lora_of: Callable[[Trainer], LoraStateDict]
) -> Iterator[Event]:
    """Sample previews after an event where they are due, and before the first step those of the model alone."""
    if isinstance(event, Started) and not event.step:
        weights, name, lora = trainer.adapter.switched_off(), BASE, None
    # at the start: Cancel preempted the one of the last step
    elif (isinstance(event, (Started, StepDone)) and is_due(trainer, previews, event.step)
          and not trainer.is_logged("Previewed", event.step)):
        weights, name = trainer.averages.in_place(), f"step_{event.step:06d}"
        lora = partial(lora_of, trainer)
    else:
        return
    try:
        with weights:
            made = previews.make(event.step, name, lora)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        made = (left_out(event.step, error),)
    for each in made:
        trainer.folder.log(each)
        trainer.scalars.add(each)
        for number, file in enumerate(each.files if isinstance(each, Previewed) else ()):
            with Image.open((trainer.folder.path / file).with_suffix(".jpg")) as strip:
                trainer.scalars.add_picture(f"prompt {number + 1}", np.asarray(strip), event.step)
        yield each
