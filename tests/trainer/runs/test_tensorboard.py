"""TensorBoard shows each step once, also where a run goes on within the second in which it was killed."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wantune.trainer.runs.events import StepDone
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
