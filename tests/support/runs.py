"""Runs that are driven to an end, and run folders for tests that need no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from wantune.trainer.runs import history
from wantune.trainer.runs.attempts import Wanted, open_run
from wantune.trainer.runs.events import Event, StepDone
from wantune.trainer.runs.folder import RunFolder
from wantune.trainer.training.run import Run


def driven(run: Run, previews=None, stop_at: int = 10**9) -> list[Event]:
    """The events of a run that is stopped after a step of this number, or trained to its end."""
    events = []
    with closing(run.events(previews)) as going_on:
        for event in going_on:
            events.append(event)
            run.stop |= isinstance(event, StepDone) and event.step >= stop_at
    return events


def begun(root: Path, name: str, key: str, config: Mapping, attempt: int = 0, total_steps: int = 1 << 30) -> RunFolder:
    """The folder of the run with this key, opened for training and unlocked again."""
    wanted = Wanted(name=name, keys=(key,), config=config, attempt=attempt, restart=False,
                    total_steps=total_steps, is_length_fixed=False)
    opened = open_run(root, wanted, lambda _found: False)
    opened.lock.release()
    return opened.folder


def assert_one_history(folder: Path) -> list[float]:
    """The log, TensorBoard and the page tell the same of a run, and each thing once; returns the finite losses."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {event: [line for line in lines if line["event"] == event]
            for event in ("StepDone", "Evaluated", "Previewed")}
    for found in told.values():
        steps = [line["step"] for line in found]
        assert steps == sorted(set(steps)), "each once, in order"
    steps = told["StepDone"]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = board.Tags()

    def scalars(tag: str) -> list[tuple]:
        return [(event.step, np.float32(event.value)) for event in board.Scalars(tag)] if tag in tags["scalars"] else []

    finite = [line for line in steps if line["loss"] is not None]
    assert scalars("loss") == [(line["step"], np.float32(line["loss"])) for line in finite]
    assert scalars("preservation") == [(line["step"], np.float32(line["preservation"])) for line in steps
                                       if line["preservation"] is not None]
    for tag, name in (("with the LoRA", "loss"), ("without", "base_loss")):
        assert scalars(f"held-out loss/{tag}") == [
            (line["step"], np.float32(line[name])) for line in told["Evaluated"]]
    for name in ("learned", "drift"):
        assert scalars(f"meters/{name}") == [
            (line["step"], np.float32(line[name])) for line in told["Evaluated"] if line[name] is not None]
    shown = [event.step for event in board.Images("preview/prompt 1")] if tags["images"] else []
    assert shown == [line["step"] for line in told["Previewed"]]

    page = history.RunLog(folder / "log.jsonl")
    page.refresh()
    assert list(page.steps) == [line["step"] for line in steps]
    shown = ("step", "learned")
    assert [[entry[name] for name in shown] for entry in page.evaluated] == [
        [line[name] for name in shown] for line in told["Evaluated"]]
    assert [entry["step"] for entry in page.previewed] == [line["step"] for line in told["Previewed"]]
    assert history.summary(folder).step == len(steps)
    return [line["loss"] for line in finite]
