"""The ladder of plans, the choice among them, and what is said where nothing fits."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from wantune.trainer.adapter.adapter_size import adapter_size
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.choice import GIB, Needs, Space, choose
from wantune.trainer.memory.footprint import parts
from wantune.trainer.memory.plan import Plan, below, ladder
from wantune.trainer.memory.sizes import ModelSize, Work
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig


def linears(dim: int, ffn_dim: int, blocks: int) -> dict[str, tuple[int, int]]:
    square = [f"{branch}.{which}" for branch in ("self_attn", "cross_attn") for which in "qkvo"]
    return {f"blocks.{number}.{name}": size for number in range(blocks) for name, size in (
        *((each, (dim, dim)) for each in square), ("ffn.0", (ffn_dim, dim)), ("ffn.2", (dim, ffn_dim)))}


def needs(size: str = "1.3B", tokens: int = 1024, frames: int = 1, side: int = 512, weight: int = 2, rank: int = 32,
          batch_size: int = 1, copies: int = 0, pins: MemoryConfig | None = None, **optimizer) -> Needs:
    """Wan2.1 in bf16, or with weights of `weight` bytes."""
    dim, ffn_dim, heads, blocks, numbers = {
        "1.3B": (1536, 8960, 12, 30, 1_418_996_800), "14B": (5120, 13824, 40, 40, 14_288_491_584)}[size]
    model = ModelSize(dim=dim, ffn_dim=ffn_dim, heads=heads, blocks=blocks, weights=weight * numbers, value=2,
                      block_values=8 * dim**2 + 2 * dim * ffn_dim, are_cast=weight != 2,
                      stored=weight * (8 * dim**2 + 2 * dim * ffn_dim), copies=copies)
    work = Work(side=side, frames=frames, stride=4, tokens=tokens, batch_size=batch_size, text_rows=64)
    return Needs(model=model, linears=linears(dim, ffn_dim, blocks), lora=LoraConfig(rank=rank, alpha=rank),
                 optimizer=OptimizerConfig(**optimizer), work=work, pins=pins or MemoryConfig())


def card(gib: float, ram: float = 64) -> Space:
    return Space(free=int(gib * GIB), ram=int(ram * GIB), offloads=True)


CPU = replace(card(64), ram=0, offloads=False)


def test_the_ladder_goes_from_the_fastest_to_the_smallest():
    plans = list(ladder(MemoryConfig(), 30, True))
    assert plans[0] == Plan(whole_blocks=30) and plans[1].whole_blocks == 29
    assert plans[30:] == [
        Plan(segments="branch", keeps_attention=True), Plan(keeps_attention=True), Plan(), Plan(inputs_in_ram=True)]
    wanted = needs(tokens=8_000)
    adapter = adapter_size(wanted.lora, wanted.linears)
    totals = [parts(wanted.model, adapter, wanted.optimizer, wanted.work, plan).total for plan in plans]
    # one whole block alone takes no more than what computing a block again does
    assert totals[:29] == sorted(totals[:29], reverse=True) and totals[30:] == sorted(totals[30:], reverse=True)
    assert list(ladder(MemoryConfig(), 30, False))[-1] == Plan(), "a CPU has no other memory"


@pytest.mark.parametrize(("pins", "plans"), [
    ({"whole_blocks": 30}, [Plan(whole_blocks=30)]),
    ({"whole_blocks": 99}, [Plan(whole_blocks=30)]),
    ({"whole_blocks": 0, "keep_attention": "off"}, [Plan(segments="branch"), Plan(), Plan(inputs_in_ram=True)]),
    ({"whole_blocks": 3, "segments": "block", "keep_attention": "on", "inputs_in_ram": "off"},
     [Plan(whole_blocks=3, keeps_attention=True)]),
    ({"whole_blocks": 0, "segments": "block", "keep_attention": "off", "inputs_in_ram": "on"},
     [Plan(inputs_in_ram=True)]),
])
def test_what_is_pinned_stays(pins, plans):
    assert list(ladder(MemoryConfig(**pins), 30, True)) == plans


def test_the_fastest_plan_that_fits_is_chosen():
    chosen = [choose(needs(tokens=9_216, frames=33), card(gib)) for gib in (48, 24, 16, 12, 8, 5)]
    wholes = [choice.plan.whole_blocks for choice in chosen]
    print(*(f"{choice.free / GIB:.0f} GiB: {choice.told()}" for choice in chosen), sep="\n")
    assert wholes[0] == 30 and wholes == sorted(wholes, reverse=True) and wholes[1] > wholes[2] > wholes[3]
    for choice in chosen:
        assert choice.parts.total <= choice.free
        assert choice.parts.total == (choice.parts.weights + choice.parts.adapter + choice.parts.optimizer
                                      + choice.parts.activations + choice.parts.previews)


def test_one_more_whole_block_would_not_have_fitted():
    wanted, space = needs(tokens=9_216), card(16)
    number = choose(wanted, space).plan.whole_blocks
    assert 0 < number < 30
    with pytest.raises(UserError):
        more = MemoryConfig(whole_blocks=number + 1, segments="branch", keep_attention="on", inputs_in_ram="off")
        choose(replace(wanted, pins=more), replace(space, offloads=False))


def test_what_does_not_fit_of_the_weights_stays_in_ram():
    choice = choose(needs("14B", tokens=1024, weight=1), card(10))
    assert choice.plan == Plan(inputs_in_ram=True)
    assert choice.parts.total == choice.free and choice.parts.offloaded > 3 * GIB
    assert choice.parts.weights + choice.parts.offloaded == needs("14B", weight=1).model.weights
    assert "GiB of the weights stay in RAM" in choice.told()


@pytest.mark.parametrize("weight", [1, 2])
@pytest.mark.parametrize("fetches_blocks", [False, True])
def test_the_buffers_through_which_offloaded_weights_come_are_counted(weight, fetches_blocks):
    wanted, space = needs("14B", weight=weight), card(10)
    model = wanted.model
    streamed = replace(space, streams=2, fetches_blocks=fetches_blocks)
    choice = choose(wanted, streamed)
    assert choice.parts.total == choice.free
    plain = parts(replace(model, are_lent=not fetches_blocks), adapter_size(wanted.lora, wanted.linears),
                  wanted.optimizer, wanted.work, choice.plan)
    buffers = choice.parts.activations - plain.activations
    matrix = weight * model.dim * model.ffn_dim
    if fetches_blocks:  # both hold what of a block is not there, rounded up to a matrix
        assert 0 < buffers / 2 - choice.parts.offloaded / model.blocks - matrix < 0.01 * matrix
        assert 2 * model.stored > buffers
    else:
        assert buffers == 2 * matrix
    all_there = replace(streamed, free=100 * GIB)
    assert choose(wanted, all_there).parts == choose(wanted, replace(space, free=100 * GIB)).parts


def test_copies_of_weights_in_8_bits_are_counted_before_a_plan_is_chosen():
    values = 30 * needs().model.block_values
    without, wanted = needs(tokens=9_216), needs(tokens=9_216, copies=values)
    choice = choose(wanted, card(16))
    assert choice.plan.whole_blocks < choose(without, card(16)).plan.whole_blocks
    assert choice.parts.copies == values and choice.parts.total <= choice.free
    assert choice.parts.lasting == choice.parts.adapter + choice.parts.optimizer + values
    assert f" Copies of weights in 8 bits take {values / GIB:.2f} GiB of it." in choice.told()
    assert "8 bits" not in choose(without, card(16)).told()


def test_weights_that_stay_in_ram_have_no_copies():
    wanted = needs("14B", copies=40 * needs("14B").model.block_values)
    found = choose(wanted, card(20)).parts
    assert found.total <= 20 * GIB and 0 < found.copies < wanted.model.copies
    assert found.copies / wanted.model.copies == pytest.approx(found.weights / wanted.model.weights, abs=1e-6)
    assert found.offloaded < choose(needs("14B"), card(20)).parts.offloaded + wanted.model.copies


def test_on_a_cpu_weights_do_not_move():
    with pytest.raises(UserError, match=r"at least 1\d\.\d GiB of memory here, 10.0 GiB are there; no single change"):
        choose(needs("14B", weight=1), replace(CPU, free=10 * GIB))


def test_inputs_wait_only_in_ram_that_is_there():
    wanted = needs("14B", tokens=21_504, frames=81, weight=1)
    assert choose(wanted, card(20)).plan.inputs_in_ram
    assert choose(wanted, card(20, ram=4)).plan == Plan() and choose(wanted, card(20, ram=4)).parts.offloaded
    with pytest.raises(UserError, match=r"at least 1\d.\d GiB of memory here, 11.0 GiB are there; set frame_buckets"):
        choose(wanted, card(11, ram=4))


@pytest.mark.parametrize(("changes", "gib", "name"), [
    ({"batch_size": 64, "weight": 1}, 6, "batch_size"),
    ({"tokens": 3_072, "frames": 9, "rank": 4}, 2.0, "resolution"),
    ({"rank": 1024}, 40, "rank"),
])
def test_a_refusal_names_the_smallest_change_that_fits(changes, gib, name):
    wanted, space = needs("14B", **changes), card(gib, ram=0)
    with pytest.raises(UserError) as refused:
        choose(wanted, space)
    print(refused.value)
    value = int(re.search(rf"; set {name} to (\d+) \(now \d+\)\.", str(refused.value))[1])
    choose(changed(wanted, name, value), space)
    with pytest.raises(UserError):
        choose(changed(wanted, name, value + {"batch_size": 1, "resolution": 16, "rank": value}[name]), space)


def changed(wanted: Needs, name: str, value: int) -> Needs:
    work = wanted.work
    return replace(wanted, **{
        "batch_size": lambda: {"work": replace(work, batch_size=value)},
        "resolution": lambda: {"work": replace(work, tokens=math.ceil(work.tokens * value**2 / work.side**2))},
        "rank": lambda: {"lora": LoraConfig(rank=value)}}[name]())


def test_a_refusal_first_asks_for_what_changes_nothing():
    pinned = needs("14B", weight=1, pins=MemoryConfig(whole_blocks=40))
    with pytest.raises(UserError, match="switch gradient_checkpointing on and set Memory Settings to auto"):
        choose(pinned, card(6))


def test_what_others_need_is_left_free():
    wanted = needs(tokens=9_216)
    free = choose(wanted, card(48))
    kept = choose(replace(wanted, pins=MemoryConfig(keep_free=30)), card(48))
    assert kept.free == free.free - 30 * GIB and kept.plan.whole_blocks < free.plan.whole_blocks


def test_after_too_little_memory_the_next_plan_without_whole_blocks_follows():
    auto = MemoryConfig()
    steps = [Plan(whole_blocks=30)]
    while after := below(steps[-1], auto, 30, True):
        steps.append(after)
    assert steps[1:] == list(ladder(auto, 30, True))[30:]
    assert below(Plan(whole_blocks=30), MemoryConfig(whole_blocks=30), 30, True) is None
    pinned = MemoryConfig(whole_blocks=3, segments="branch")
    assert below(Plan(whole_blocks=3, segments="branch", keeps_attention=True), pinned, 30, True) == (
        Plan(whole_blocks=3, segments="branch"))
