"""A line that is rewritten on a terminal, and a line now and then elsewhere; the events of a run in words."""

import io

from wantune.command.terminal import Terminal, duration
from wantune.command.watching import Watching
from wantune.trainer.runs.events import Evaluated, Finished, Noted, Started, StepDone


class Stream(io.StringIO):
    encoding = "ascii"

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def step(number: int, total: int = 1000, loss: float = 0.5) -> StepDone:
    return StepDone(number, total, 1, loss, 1e-4, 1.0, (0.5,), (loss,), False, 1.0, 2.0)


def test_elsewhere_than_on_a_terminal_there_is_a_line_every_half_minute_and_the_last():
    stream, clock = Stream(False), Clock()
    watching = Watching(Terminal(stream, clock), clock=clock)
    watching.show(Started(0, 1000, 10, 40, 106496))
    for number in range(1, 1001):
        watching.show(step(number))
        clock.seconds += 0.1
    lines = stream.getvalue().splitlines()
    assert lines[0] == "beginning: 1000 steps, 10 an epoch; 40 modules, 106,496 numbers are trained"
    assert len(lines) == 1 + 4 + 1, "after 5, 35, 65 and 95 seconds, and at the end"
    assert lines[1] == "step 51/1000  epoch 1  loss 0.5000  lr 1.00e-04  2.00 samples/s  1 min 35 s left"
    assert lines[-1].startswith("step 1000/1000") and "left" not in lines[-1]


def test_on_a_terminal_one_line_is_rewritten_and_sentences_stand_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    stream, clock = Stream(True), Clock()
    watching = Watching(Terminal(stream, clock), "high: ", clock)
    for number in (1, 500, 1000):
        watching.show(step(number))
        clock.seconds += 60
        if number == 500:
            watching.show(Noted(500, "There is a note with a \u9898."))
    shown = stream.getvalue().split("\r")
    assert shown[1] == "high: step 1/1000  [                    ]  epoch 1  loss 0.5000  lr 1"
    assert shown[2].rstrip().startswith("high: step 500/1000  [==========          ]")
    assert all(len(line.rstrip("\n")) <= 69 for line in shown if "note" not in line)
    assert "high: There is a note with a ?.\n" in stream.getvalue(), "what the terminal cannot show is no error"
    assert shown[-1].startswith("high: step 1000/1000  [====================]") and shown[-1].endswith("\n")


def test_what_happens_once_in_a_while_is_said():
    stream = Stream(False)
    watching = Watching(Terminal(stream))
    watching.show(Started(4, 10, 5, 1, 8, ("The checkpoint step_000006 cannot be used (damaged); it is passed over.",)))
    watching.show(Evaluated(5, 0.2, ((0.5, 0.2),), 0.4, True, 0.01, 0.5))
    watching.show(Finished(10, 75.0, "done", 2))
    assert stream.getvalue().splitlines() == [
        "The checkpoint step_000006 cannot be used (damaged); it is passed over.",
        "going on after step 4: 10 steps, 5 an epoch; 1 modules, 8 numbers are trained",
        "step 5: held-out loss 0.2000 (without the LoRA 0.4000), learned 0.5000, drift 0.0100, the best so far",
        "done after step 10, 1 min 15 s, 2 skipped as not finite"]


def test_a_step_that_was_not_finite_does_not_spoil_the_loss():
    stream, clock = Stream(True), Clock()
    watching = Watching(Terminal(stream, clock), clock=clock)
    watching.show(step(1, loss=float("nan")))
    clock.seconds += 1
    watching.show(step(2))
    assert "loss not finite" in stream.getvalue() and "loss 0.5000" in stream.getvalue()


def test_a_quiet_terminal_says_nothing():
    stream = Stream(True)
    terminal = Terminal(stream, is_quiet=True)
    terminal.say("Something")
    terminal.progress(1, 1, "all")
    assert stream.getvalue() == ""


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3600 * 2 + 120)] == ["0 s", "59 s", "1 min 1 s", "2 h 2 min"]
