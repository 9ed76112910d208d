"""The largest batch that is worth it: by what fills the card, what fits under the plan of one sample, and the data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wantune.tests.trainer.memory.test_plan import CPU, card, needs
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.batch_size import MOST, BatchSize, largest
from wantune.trainer.memory.choice import choose
from wantune.trainer.settings.memory import MemoryConfig


def of(needed, gib: float = 80, visits: int = 100) -> BatchSize:
    return largest(needed, card(gib), visits, "cuda")


@pytest.mark.parametrize(("tokens", "number"), [
    (256, 16), (512, 8), (1024, 4), (1015, 4), (1560, 3), (2048, 2), (4096, 1), (9216, 1), (21504, 1)])
def test_a_card_with_room_gets_as_many_as_keep_it_busy(tokens, number):
    assert of(needs(tokens=tokens)) == BatchSize(number, "as about 4096 tokens keep the device busy")


@pytest.mark.parametrize(("tokens", "number"), [(256, 5), (1024, 1)])
def test_a_wider_model_keeps_it_busy_with_fewer(tokens, number):
    assert of(needs("14B", tokens=tokens, weight=1)) == BatchSize(number, "as about 1229 tokens keep the device busy")


@pytest.mark.parametrize("gib", [4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 24])
@pytest.mark.parametrize("size", ["1.3B", "14B"])
def test_memory_allows_just_as_many_as_need_no_slower_plan(size, gib):
    wanted, space = needs(size, weight=2 if size == "1.3B" else 1), card(gib)
    alone, found = choose(wanted, space), largest(wanted, space, 100, "cuda")

    def plan_of(number: int):
        choice = choose(replace(wanted, work=replace(wanted.work, batch_size=number)), space)
        return choice.plan, choice.parts.offloaded

    print(gib, found.told())
    assert plan_of(found.number) == (alone.plan, alone.parts.offloaded)
    if found.number < (4 if size == "1.3B" else 1):
        assert plan_of(found.number + 1) != (alone.plan, alone.parts.offloaded)
        assert found.reason == "as more would need a slower memory plan"


def test_both_ends_of_what_memory_allows_are_met():
    assert [of(needs(), gib).number for gib in (8, 9, 11, 16)] == [1, 2, 3, 4]


def test_weights_that_stay_in_ram_are_not_made_more():
    small = needs("14B", tokens=256, weight=1)
    assert choose(small, card(12)).parts.offloaded and of(small, 12).number == 1
    assert of(small, 80).number > 1


def test_a_pinned_plan_is_filled():
    pinned = needs(pins=MemoryConfig(whole_blocks=0, segments="block", keep_attention="off", inputs_in_ram="off"))
    assert of(needs(), 5).number == 1 and of(pinned, 5).number == 4


def test_the_data_and_a_limit_bound_it():
    assert of(needs(), visits=3) == BatchSize(3, "as no shape comes more often in an epoch")
    assert of(needs(), visits=1).number == 1
    assert of(needs(tokens=16)) == BatchSize(MOST, "the most that is chosen by itself")
    assert of(needs(tokens=16), visits=MOST + 1).number == MOST


def test_the_size_that_was_set_before_does_not_count():
    assert of(needs(batch_size=64), 12) == of(needs(), 12)


def test_a_cpu_is_filled_sooner():
    assert largest(needs(tokens=1024), CPU, 100, "cpu").number == 1
    assert largest(needs(tokens=64), CPU, 100, "cpu").number == 4


def test_what_does_not_fit_alone_is_refused():
    with pytest.raises(UserError, match="Training needs at least"):
        largest(needs("14B"), replace(card(8), offloads=False), 100, "cuda")


def test_it_is_told_in_a_sentence():
    assert BatchSize(4, "as about 4096 tokens keep the device busy").told() == (
        "batch_size 0: 4 a step, as about 4096 tokens keep the device busy; learning_rate is not adapted to it.")
