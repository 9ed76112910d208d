"""batch_size 0: chosen when a run is first begun, kept with it whatever the card, and no part of what the run is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.runs import driven
from wantune.tests.support.small_model import SmallModel
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.choice import Space
from wantune.trainer.memory.sizes import ModelSize
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.run import Run


class OfSpace(SmallModel):
    """On a device with so many bytes, and to the memory plan it is a model of many wide blocks."""

    size = ModelSize(dim=4096, ffn_dim=16384, heads=32, blocks=40, weights=1024, block_values=256, value=4,
                     are_cast=False, stored=1024)

    def __init__(self, free: int) -> None:
        super().__init__()
        self._free = free

    def space(self):
        return Space(free=self._free, ram=0, offloads=False)


LARGE, SMALL = 2 << 30, 256 << 20
"""Bytes: for twelve samples without computing anything twice, and for a few; twelve fit there by another plan."""


@pytest.fixture
def dataset(tmp_path):
    """Three pictures of one shape and two of another, each four times an epoch."""
    found = small_model.dataset(tmp_path / "cache")
    return replace(found, samples=tuple(replace(sample, repeats=4) for sample in found.samples))


@pytest.fixture
def opened(dataset, tmp_path):
    """Opens the run in a folder of its own, or in that of the test."""
    def run(free: int = LARGE, place: str = "runs", previews=None, data=dataset, restart=False, **settings) -> Run:
        config = TrainConfig(**{"epochs": 4, "batch_size": 0, "learning_rate": 1e-2, "lora": LoraConfig(rank=2),
                                "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0), **settings})
        return Run(OfSpace(free), data, "run", config, tmp_path / place, previews=previews, restart=restart)

    return run


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def kept(run: Run) -> dict:
    return json.loads((run.folder.path / "config.json").read_text(encoding="utf-8"))


FALLING = OptimizerConfig(schedule="cosine")


def test_it_is_chosen_by_the_data_said_and_kept(opened):
    with opened() as run:
        assert run.config.batch_size == 12, "three pictures, four times each"
        assert run.notes[0] == ("batch_size 0: 12 a step, as no shape comes more often in an epoch; "
                                "learning_rate is not adapted to it.")
        assert kept(run)["batch_size"] == 0 and kept(run)["chosen_batch_size"] == 12
    with opened(place="set", batch_size=3) as run:
        assert run.config.batch_size == 3 and "chosen_batch_size" not in kept(run) and run.notes == ()


@pytest.mark.parametrize("optimizer", [OptimizerConfig(), FALLING])
def test_another_card_goes_on_with_what_was_chosen_to_the_same_bits(opened, optimizer):
    with opened(place="whole", optimizer=optimizer) as whole:
        driven(whole)
    with opened(optimizer=optimizer) as first:
        driven(first, stop_at=3)
    with opened(SMALL, place="small", optimizer=optimizer) as small:
        assert small.config.batch_size < 12, "a run that is begun there"
    with opened(SMALL, optimizer=optimizer) as second:
        assert second.folder.path == first.folder.path and second.config.batch_size == 12
        assert second.notes[0].startswith("batch_size 0: 12 a step, as when the run was begun;")
        events = driven(second)
    assert events[0].step == 3 and second.losses == whole.losses and same(second.lora, whole.lora)
    with opened(optimizer=optimizer) as again:
        assert again.is_finished and same(again.lora, whole.lora)


@pytest.mark.parametrize("optimizer", [OptimizerConfig(), FALLING])
def test_what_the_run_is_does_not_depend_on_the_card(opened, optimizer):
    names = set()
    for place, free in (("one", LARGE), ("two", SMALL)):
        with opened(free, place=place, optimizer=optimizer) as run:
            names.add(run.folder.path.name)
    assert len(names) == 1


def test_where_the_rate_falls_each_length_is_a_run_of_its_own(opened):
    names = []
    for settings in ({}, {"epochs": 5}, {"max_steps": 3}, {"epochs": 5}):
        with opened(optimizer=FALLING, **settings) as run:
            names.append(run.folder.path.name)
    assert len(set(names)) == 3 and names[1] == names[3]
    with opened() as shorter, opened(place="longer", epochs=9) as longer:
        assert shorter.folder.path.name == longer.folder.path.name, "and otherwise it is not"


def test_it_learns_what_a_run_learns_in_which_the_number_is_set(opened):
    with opened() as chosen, opened(batch_size=12) as given:
        driven(chosen), driven(given)
        assert chosen.folder.path != given.folder.path
    assert chosen.losses == given.losses and same(chosen.lora, given.lora)
    told = [json.loads(run.lora.metadata["wantune.config"])["batch_size"] for run in (chosen, given)]
    assert told == [12, 12]


def test_a_further_attempt_has_the_same_number(opened):
    with opened() as first:
        driven(first)
    with opened(SMALL, restart=True) as second:
        assert second.folder.path != first.folder.path and second.config.batch_size == 12
        driven(second)
    assert same(first.lora, second.lora)


def test_previews_count(opened):
    class Previews:
        tokens, decoding = 1, SMALL // 2

    with opened(SMALL) as without, opened(SMALL, place="with", previews=Previews()) as with_previews:
        print(without.notes, with_previews.notes)
        assert with_previews.config.batch_size <= without.config.batch_size


@pytest.mark.parametrize("found", [None, 0, -3, 2.5, "4", True])
def test_a_number_that_is_gone_or_wrong_is_told(opened, found):
    with opened() as run:
        driven(run, stop_at=2)
    config = kept(run)
    config["chosen_batch_size"] = found
    (run.folder.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json of the run {run.folder.path.name} has .* as chosen_batch_size"):
        opened()
