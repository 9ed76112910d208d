"""What becomes of a step for which there was too little memory: it is done again, once in a run, by a smaller plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..base.errors import UserError
from ..base.out_of_memory import OUT_OF_MEMORY, first_line, is_out_of_memory
from ..runs.events import Noted


class Trainer(Protocol):
    """What of loop.py's is needed here."""

    step: int
    total_steps: int

    def train_step(self) -> None:
        """One step."""

    def undo(self) -> bool:
        """Forget a step that did not come to its end, so that the next one is the same; False where weights moved."""


class Steps:
    """The steps of a trainer.

    Args:
        step_down: goes on with less memory, and says how; None where it cannot.
    """

    def __init__(self, trainer: Trainer, step_down: Callable[[], str | None]) -> None:
        self._trainer = trainer
        self._step_down: Callable[[], str | None] | None = step_down

    def take(self) -> Iterator[Noted]:
        """One step, and a note where it is done again: then all is as if it had had enough memory at once."""
        trainer, fault = self._trainer, ""
        try:
            trainer.train_step()
        except RuntimeError as error:
            if not is_out_of_memory(error) or self._step_down is None:
                raise
            fault = first_line(error)
        if fault:  # not within `except`, where the error holds what the step had allocated
            step_down, self._step_down = self._step_down, None
            how = step_down() if trainer.undo() else None
            if how is None:
                raise OUT_OF_MEMORY(fault)
            yield Noted(trainer.step, f"There was too little memory for step {trainer.step + 1}, which is done again "
                        f"with less: {how}. ({fault})")
            trainer.train_step()


@contextmanager
def enough_memory_to_begin() -> Iterator[None]:
    """UserError where there is too little memory to begin with; steps say it themselves."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("Out of memory when the model was made ready for training; end other programs that use the "
                        "card, or lower rank, batch_size, resolution or frame_buckets. What was learned before is "
                        f"kept. ({first_line(error)})") from None


@contextmanager
def enough_memory(trainer: Trainer) -> Iterator[None]:
    """UserError where there is too little memory for a step or an evaluation after all."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"Out of memory at step {trainer.step + 1} of {trainer.total_steps}; lower batch_size, "
                        "resolution, frame_buckets or rank, or switch gradient_checkpointing on. What was learned is "
                        f"saved. ({first_line(error)})") from None


def left_out(step: int, error: BaseException) -> Noted:
    """Says of a preview that there was too little memory for it."""
    return Noted(step, f"The preview after step {step} was left out, as there was too little memory for it; lower "
                 f"width, height or frames in Preview Settings. ({first_line(error)})")
