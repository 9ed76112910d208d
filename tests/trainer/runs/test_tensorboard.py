"""TensorBoard shows each step once, also where a run goes on within the second in which it was killed."""

import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from wantune.trainer.runs import tensorboard
from wantune.trainer.runs.events import Evaluated, StepDone
from wantune.trainer.runs.tensorboard import Scalars


def write(folder, first: int, last: int, resumed: int) -> None:
    scalars = Scalars(folder, resumed)
    for step in range(first, last + 1):
        scalars.add(StepDone(step, 9, 1, float(first), 1e-4, 1.0, (0.5,), (float(first),), False, 1.0, 1.0))
    scalars.close()


def test_what_is_done_again_is_shown_once(tmp_path):
    write(tmp_path, 1, 5, 0)
    (first,) = tmp_path.iterdir()
    second, host = first.name.split(".")[3:5]
    first.rename(tmp_path / f"events.out.tfevents.{second}.{host}.99999999.0")  # of a process with a larger number
    write(tmp_path, 4, 6, 3)
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4)]


def test_a_run_that_begins_again_has_nothing_of_before(tmp_path):
    write(tmp_path, 1, 5, 0)
    write(tmp_path, 1, 2, 0)
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [1, 2]


def test_steps_wait_for_each_other_and_are_there_before_what_follows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "SECONDS_BETWEEN_WRITES", 1e9)
    monkeypatch.setattr(tensorboard, "MOST_WAITING", 3)
    scalars = Scalars(tmp_path, 0)

    def steps_in_file() -> list[int]:
        scalars._writer.flush()
        (path,) = tmp_path.iterdir()
        return [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]

    def add(step: int, loss: float) -> None:
        scalars.add(StepDone(step, 9, 1, loss, 1e-4, 2.0, (0.5, 0.5, 0.9), (1.0, 3.0, loss), False, 1.0, 1.0))

    for step in range(1, 5):
        add(step, 1.0)
    assert steps_in_file() == [1, 2, 3], "each is one record, and a full list is written"
    add(5, math.nan)
    scalars.add(Evaluated(5, 0.25, (), 0.5, True, None, 0.5))
    assert steps_in_file() == [1, 2, 3, 4, 5, 5, 5, 5], "three numbers of an evaluation"
    add(6, 1.0)
    scalars.flush()
    assert steps_in_file()[-1] == 6
    monkeypatch.setattr(tensorboard, "SECONDS_BETWEEN_WRITES", 0)
    add(7, 1.0)
    assert steps_in_file()[-1] == 7
    scalars.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 6, 7], "one that is not finite is left out"
    assert [event.value for event in found.Scalars("loss by noise level/0.4 to 0.6")[:2]] == [1.0, 3.0]
    assert found.Scalars("gradient norm")[4].value == 2.0 and found.Scalars("held-out loss/without")[0].value == 0.5
