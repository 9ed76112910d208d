"""Several processes learn what one learns with the same batches, and end together, whatever ends one of them.

They are real processes that torch.distributed joins over gloo.
"""

import json
import os
import random
import shutil
import socket

import pytest

from wantune.tests.support import tools
from wantune.tests.support.rank_workers import CASES
from wantune.tests.support.ranked import Ranked
from wantune.tests.support.runs import assert_one_history
from wantune.trainer.runs.state import read_checkpoint
from wantune.trainer.training.ranks import ALONE, Ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes that have torch loaded")

CLOSE = 1e-5
FIRST = "adamw, accumulation"
AT_ONCE = 10.0
"""Seconds within which all end where one does; on a machine that does nothing else it is one."""


@pytest.fixture(scope="module")
def workers():
    running = Ranked()
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(workers, tmp_path_factory):
    """What one process learns in twelve steps, by case: its result, and its folder."""
    known = {}

    def of(case: str):
        if case not in known:
            place = tmp_path_factory.mktemp("alone")
            done = workers.run("train", 1, place, case=case)
            assert done.codes == [0], done.said
            known[case] = done.results[0], run_folder(place)
        return known[case]

    return of


def run_folder(place):
    (folder,) = (place / "runs").iterdir()
    return folder


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def position(folder, step: int) -> tuple[int, int]:
    return read_checkpoint(folder, step).state["position"]


def assert_same(result: dict, folder, expected: dict, whole) -> None:
    """The same run as that of one process: its adapter, its losses, and what it says, each once."""
    assert result["lora"].keys() == expected["lora"].keys()
    for name, values in expected["lora"].items():
        assert result["lora"][name] == pytest.approx(values, abs=CLOSE), name
    assert result["losses"] == pytest.approx(expected["losses"], rel=CLOSE)
    assert assert_one_history(folder) == result["losses"]
    assert folder.name == whole.name, "the same run"
    told, known = ([line for line in lines(each) if line["event"] in ("StepDone", "Evaluated")]
                   for each in (folder, whole))
    assert [line["event"] for line in told] == [line["event"] for line in known]
    for one, other in zip(told, known, strict=True):
        assert one["step"] == other["step"]
        if one["event"] == "Evaluated":
            assert (one["is_best"], one["loss"]) == (other["is_best"], pytest.approx(other["loss"], rel=CLOSE))
            for name in ("learned", "drift"):
                assert one[name] == pytest.approx(other[name], rel=1e-3), name
        else:
            assert one["timesteps"] == other["timesteps"] and one["losses"] == pytest.approx(other["losses"], rel=CLOSE)
    assert position(folder, 12) == position(whole, 12)
    assert not (folder / "training.json").exists() and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_learn_what_one_learns(workers, alone, tmp_path, case, count):
    done = workers.run("train", count, tmp_path, case=case)
    assert done.codes == [0] * count, done.said
    assert all(result["lora"] == done.results[0]["lora"] for result in done.results), "the same bits everywhere"
    assert all(result["steps"] == list(range(1, 13)) for result in done.results)
    assert_same(done.results[0], run_folder(tmp_path), *alone(case))
    assert len(list(run_folder(tmp_path).glob("events.out.tfevents.*"))) == 1, "one process writes"


@pytest.mark.parametrize("counts", [(2, 1), pytest.param((4, 2, 1), marks=pytest.mark.long),
                                    pytest.param((1, 4), marks=pytest.mark.long)])
def test_a_run_goes_on_in_another_number_of_processes(workers, alone, tmp_path, counts):
    for number, count in enumerate(counts[:-1], 1):
        done = workers.run("train", count, tmp_path, case=FIRST, at={"rank": 0, "step": 4 * number, "what": "stop"})
        assert done.codes == [0] * count, done.said
        assert {tuple(result["steps"])[-1] for result in done.results} == {4 * number}, "all after the same step"
    done = workers.run("train", counts[-1], tmp_path, case=FIRST)
    assert done.codes == [0] * counts[-1], done.said
    assert done.results[0]["steps"] == list(range(4 * len(counts) - 3, 13))
    assert_same(done.results[0], run_folder(tmp_path), *alone(FIRST))


def killed_and_continued(workers, alone, place, count: int, kills: list[dict]) -> None:
    for kill in kills:
        done = workers.run("train", count, place, case=FIRST, at=kill)
        assert done.codes[kill["rank"]] == -9
        killed = done.seconds[kill["rank"]]
        for rank in set(range(count)) - {kill["rank"]}:
            assert done.codes[rank] == 1 and done.seconds[rank] - killed < AT_ONCE
            (sentence,) = done.said[rank].splitlines()
            assert f"Another of the {count} processes is gone" in sentence and "Start the same again" in sentence
    done = workers.run("train", count, place, case=FIRST)
    assert done.codes == [0] * count, done.said
    assert_same(done.results[0], run_folder(place), *alone(FIRST))


def test_one_of_two_is_killed(workers, alone, tmp_path):
    """First the one that writes, which leaves what it has saved before; then the other, which costs no step."""
    draw = random.Random(0)
    killed_and_continued(workers, alone, tmp_path, 2, [
        {"rank": 0, "step": draw.randint(3, 6), "what": "kill in backward"},
        {"rank": 1, "step": draw.randint(8, 11), "what": "kill"}])
    resumed = [line["step"] for line in lines(run_folder(tmp_path)) if line["event"] == "Started"]
    assert len(resumed) == 3


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_one_of_four_is_killed_anywhere(workers, alone, tmp_path, seed):
    draw = random.Random(seed)
    killed_and_continued(workers, alone, tmp_path, 4, [
        {"rank": draw.randrange(4), "step": step, "what": draw.choice(["kill", "kill in backward"])}
        for step in sorted(draw.sample(range(1, 12), 3))])


def test_the_first_process_is_cancelled_and_all_end_after_the_same_step(workers, tmp_path):
    done = workers.run("train", 2, tmp_path, case=FIRST, at={"rank": 0, "step": 5, "what": "cancel"})
    assert done.codes == [130, 0], done.said
    assert done.results[1]["steps"] == [1, 2, 3, 4, 5]
    assert position(run_folder(tmp_path), 5), "what was learned is saved"


def test_an_error_in_one_ends_all_and_only_that_one_explains_it(workers, tmp_path):
    done = workers.run("train", 2, tmp_path, case=FIRST, at={"rank": 1, "step": 5, "what": "error in backward"})
    assert done.codes == [1, 1] and done.said[1] == "This process has a fault.\n"
    assert "ended with an error" in done.said[0] and len(done.said[0].splitlines()) == 1
    assert position(run_folder(tmp_path), 4), "what was learned is saved"


@pytest.mark.parametrize("what, told", [("version", "must have the same version of torch: process 0 on"),
                                        ("data", "must have the same data: process 0 on")])
def test_processes_that_differ_are_refused_in_a_sentence(workers, tmp_path, what, told):
    done = workers.run("train", 2, tmp_path, case=FIRST, unequal=what)
    assert done.codes == [1, 1]
    for said in done.said:
        assert told in said and len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_is_told_in_a_sentence(workers, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = workers.run("train", 1, tmp_path, case=FIRST, environment={
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    assert done.codes == [1]
    sentence = done.said[0].splitlines()[-1]
    assert f"Port {port} of 127.0.0.1" in sentence and "is taken by another program" in sentence


def test_a_finished_run_is_loaded_by_all(workers, alone, tmp_path):
    result, folder = alone(FIRST)
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    done = workers.run("train", 2, tmp_path, case=FIRST)
    assert done.codes == [0, 0], done.said
    assert all(each["steps"] == [] and each["lora"] == result["lora"] for each in done.results)


def test_a_batch_size_of_our_choice_fills_all_devices(workers, tmp_path):
    one, two = (workers.run("train", count, tmp_path / str(count), case="preserving",
                            settings={"batch_size": 0, "max_steps": 1}).results[0] for count in (1, 2))
    assert one["batch_size"] == two["batch_size"] == 4, "no shape comes more often"


def test_a_cache_is_filled_by_all_and_nothing_twice(workers, tmp_path):
    folder = tools.write_pictures(tmp_path / "data", (96, 96))
    (folder / "gone.png").write_bytes((folder / "rocket.png").read_bytes() + b"!")
    whole = workers.run("fill", 1, tmp_path / "one", folder=str(folder)).results[0]
    (folder / "gone.png").write_bytes((folder / "rocket.png").read_bytes() + b"!")
    done = workers.run("fill", 2, tmp_path / "two", folder=str(folder))
    assert done.codes == [0, 0], done.said
    parts = [result.pop("encoded") for result in done.results]
    assert all(parts) and sorted(map(str, parts[0] + parts[1])) == sorted(map(str, whole.pop("encoded")))
    assert done.results == [whole, whole] and "gone.png" in whole["left_out"][0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").rglob("*.safetensors")} == {
        path.name: path.read_bytes() for path in (tmp_path / "one").rglob("*.safetensors")}


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_rows_of_a_batch_fall_to_one_process_each(count):
    for size in range(1, 20):
        ranks = [Ranks() for _ in range(count)]
        for number, each in enumerate(ranks):
            each.rank, each.count = number, count
        counted = [rows for rows, is_counted in (each.rows(size) for each in ranks) if is_counted]
        assert [row for rows in counted for row in range(size)[rows]] == list(range(size))
        lengths = [rows.stop - rows.start for rows in counted]
        assert max(lengths) == ranks[0].most_rows(size) and max(lengths) - min(lengths) <= 1
    assert ALONE.rows(5) == (slice(0, 5), True)
