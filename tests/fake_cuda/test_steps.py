"""Training steps of full-size Wan on a card that is not there: devices, memory, kernels, bus and waits.

Each case runs in a process of its own (process.py), whose torch is changed for it (device.py says how, and where it
does not fit). They are skipped there, but not where WANTUNE_FAKE_CUDA is "required", as in CI.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wantune.tests.fake_cuda import device, faults
from wantune.tests.fake_cuda.counting import CHUNK, launches
from wantune.tests.fake_cuda.limits import COMFYUI_RESERVES, SLACK, Limits, broken
from wantune.tests.fake_cuda.measure import Case
from wantune.tests.fake_cuda.process import Measuring

PICTURE, LONG_CLIP, WIDE_CLIP = "1,64,64", "21,64,64", "9,60,104"
"""512 x 512; 81 frames of it; 33 frames of 832 x 480."""

FULL = {
    "1.3b picture": (Case(), Limits(kernels=3_700, dispatches=8_350, total=3.35)),  # goals: 3,500, 9,000, 3.3
    "1.3b picture, small functions compiled": (Case(compile=True), Limits(kernels=3_370, dispatches=7_450)),
    "1.3b picture, inputs in RAM": (Case(plan="branch+ram"), Limits(total=3.3)),
    "1.3b 480x832x33": (Case(latent=WIDE_CLIP, plan="ram"), Limits(total=5)),
    "14b fp8 picture in 12 GiB": (
        Case(size="14b", dtype="fp8", plan="auto", vram=12), Limits(total=12 - COMFYUI_RESERVES)),
    "14b fp8 512x512x33 in 16 GiB": (
        Case(size="14b", dtype="fp8", latent="9,64,64", plan="auto", vram=16), Limits(total=16 - COMFYUI_RESERVES)),
}
"""With all blocks."""

PLANS = {
    "classic": ("block", "branch", "attention", "branch+attention", "branch+attention+whole=1", "ram", "whole"),
    "partly:0.4": ("block", "branch", "whole"), "dynamic:0.4": ("block", "branch", "whole"),
}
"""What is kept of the forward pass, by how ComfyUI holds the weights."""

SMALL = {
    f"{size} {memory} {plan}": pytest.param(
        Case(size=size, blocks=3, memory=memory, plan=plan),
        marks=[] if size == "tiny" or plan == "block" else [pytest.mark.long])
    for size in ("tiny", "14b") for memory, plans in PLANS.items() for plan in plans
}
"""With three blocks: one more adds the same again."""

IMAGE = {
    f"{family} {size} {plan}": pytest.param(
        Case(family=family, size=size, blocks=3, latent=latent, plan=plan),
        marks=[] if size == "tiny" or plan == "block" else [pytest.mark.long])
    for family, size, latent in (
        ("Wan2.1 I2V", "tiny", "4,32,32"), ("Wan2.1 I2V", "14b", WIDE_CLIP), ("Wan2.1 FLF2V", "14b", WIDE_CLIP),
        ("Wan2.2 I2V", "14b", WIDE_CLIP), ("Wan2.2 5B", "tiny", "4,32,32"), ("Wan2.2 5B", "5b", "9,44,80"))
    for plan in ("block", "branch", "whole")
}
IMAGE |= {
    "VACE": Case(family="Wan2.1 VACE", size="14b", blocks=4, latent=WIDE_CLIP, plan="whole"),
    "VACE, again": Case(family="Wan2.1 VACE", size="1.3b", blocks=4, latent=WIDE_CLIP),
    "Fun-Control still": Case(family="Wan2.2 Fun-Control", size="14b", blocks=3),
}
"""Of models that are given frames or control clips; 9,44,80 are 33 frames of 1280 x 704 of 5B, whose first has a level
of its own."""

PRESERVING = {
    f"{size} {plan} {latent}": pytest.param(
        Case(size=size, blocks=3, latent=latent, plan=plan, preserve=0.5),
        marks=[] if size == "tiny" else [pytest.mark.long])
    for size, latent in (("tiny", "4,32,32"), ("1.3b", "1,64,64"), ("14b", "1,64,64"), ("14b", WIDE_CLIP))
    for plan in ("block", "branch", "whole")
}
"""Steps that hold the model to what it was, after what they learn."""

MORE = {
    "1.3b without checkpointing": Case(plan="whole"),
    "1.3b 480x832x33, inputs on the card": Case(latent=WIDE_CLIP),
    "1.3b 480x832x33 in 8 GiB": Case(latent=WIDE_CLIP, plan="auto", vram=8),
    "1.3b 512x512x81": Case(latent=LONG_CLIP),
    "14b": Case(size="14b"),
    "14b without checkpointing": Case(size="14b", plan="whole"),
    "14b 480x832x33": Case(size="14b", latent=WIDE_CLIP),
    "14b 512x512x81": Case(size="14b", latent=LONG_CLIP),
    "14b 512x512x81, inputs in RAM": Case(size="14b", latent=LONG_CLIP, plan="ram"),
    "14b rank 128": Case(size="14b", rank=128),
    "14b partly": Case(size="14b", memory="partly:0.4"),
    "14b dynamic": Case(size="14b", memory="dynamic:0.4"),
    "batch of four": Case(batch=4),
    "fp16": Case(dtype="fp16"),
    "dropout": Case(dropout=0.1),
    "lokr": Case(kind="lokr"),
    "loha": Case(kind="loha"),
    "prodigy": Case(optimizer="prodigy"),
    "long text": Case(text=500),
    "I2V fp8 partly": Case(family="Wan2.1 I2V", size="14b", latent=WIDE_CLIP, dtype="fp8", memory="partly:0.4"),
    "I2V dynamic": Case(family="Wan2.1 I2V", size="14b", latent=WIDE_CLIP, memory="dynamic:0.4"),
    "I2V, a batch of four": Case(family="Wan2.1 I2V", size="14b", batch=4),
    "5B still": Case(family="Wan2.2 5B", size="5b", latent="1,44,80"),
    "5B dynamic": Case(family="Wan2.2 5B", size="5b", latent="9,44,80", memory="dynamic:0.4"),
}

TINY = Case(size="tiny", latent="4,32,32")

WRONG_DEVICE = ("bias left on the CPU", "t not moved", "noise left on the CPU", "adapter on the CPU")

TOO_MUCH = {
    "activations kept twice": (replace(TINY, plan="whole"), "planned for"),
    "a weight fetched twice": (replace(TINY, memory="partly:0.4", blocks=4), "crossings"),
    "a pin not given back": (replace(TINY, memory="dynamic:0.4"), "pins were not given back"),
    "the loss read at once": (TINY, "waits"),
}
"""{fault: a case, and what tells of it}"""


@pytest.fixture(scope="module")
def measured(comfy, tmp_path_factory):
    """Answers a Case with what a step takes."""
    why = device.why_not()
    if why and device.is_required():
        pytest.fail(f"{why}; {device.REQUIRED} is set, so these tests must run.")
    if why:
        pytest.skip(why)
    measuring = Measuring(comfy.path, tmp_path_factory.mktemp("fake_cuda") / "log.txt")
    yield measuring
    measuring.close()


@pytest.fixture(scope="module")
def has_dynamic_vram(comfy) -> bool:
    """ComfyUI 0.3.75 has none."""
    return (comfy.path / "comfy" / "memory_management.py").is_file()


@pytest.mark.parametrize("name", FULL)
def test_a_step_of_a_full_size_model_stays_within_its_limits(measured, name):
    case, limits = FULL[name]
    assert not broken(measured(case), limits)


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_every_plan_is_right_however_comfyui_holds_the_weights(measured, has_dynamic_vram, case):
    if case.memory.startswith("dynamic") and not has_dynamic_vram:
        pytest.skip("this version of ComfyUI has no dynamic VRAM")
    assert not broken(measured(case), Limits())


@pytest.mark.parametrize("case", IMAGE.values(), ids=IMAGE)
def test_a_step_with_given_frames_takes_what_is_planned_for(measured, case):
    assert not broken(measured(case), Limits())


@pytest.mark.parametrize("case", PRESERVING.values(), ids=PRESERVING)
def test_a_step_that_preserves_takes_what_is_planned_for(measured, case):
    assert not broken(measured(case), Limits())


@pytest.mark.long
@pytest.mark.parametrize("name", MORE)
def test_what_else_a_run_can_have_stays_within_its_limits(measured, has_dynamic_vram, name):
    if MORE[name].memory.startswith("dynamic") and not has_dynamic_vram:
        pytest.skip("this version of ComfyUI has no dynamic VRAM")
    assert not broken(measured(MORE[name]), Limits(waits=4 if name == "prodigy" else 1))  # it reads its own estimate


@pytest.mark.parametrize("memory", ["classic", "partly:0.4", "dynamic:0.4"])
def test_a_step_after_training_stepped_aside_is_as_one_without(measured, has_dynamic_vram, memory):
    """The same kernels, bus traffic and pins; what is held once for the way back does not grow."""
    if memory.startswith("dynamic") and not has_dynamic_vram:
        pytest.skip("this version of ComfyUI has no dynamic VRAM")
    case = replace(TINY, memory=memory)
    apart, plain = dict(measured(replace(case, aside=True))), dict(measured(case))
    for name in ("total", "needed"):
        assert apart.pop(name) <= plain.pop(name) + SLACK
    for name in ("aside", "estimate_of_truth", "prioritized"):
        apart.pop(name, None), plain.pop(name, None)
    assert apart == plain


def test_what_stays_on_the_card_does_not_cross_the_bus(measured):
    result = measured(Case(size="14b", blocks=3))
    assert result["weights_in"] == result["outside"] == 0
    assert result["to_card"] < 0.01


def test_a_block_more_takes_as_much_again(measured):
    two, three, four = (measured(Case(blocks=blocks)) for blocks in (2, 3, 4))
    # but for gradients that go to fp32 by halves, and for calls on lists, which start a kernel for so many tensors
    assert abs(four["dispatches"] - 2 * three["dispatches"] + two["dispatches"]) <= 2
    assert abs(four["kernels"] - 2 * three["kernels"] + two["kernels"]) <= 5


@pytest.mark.parametrize("name", WRONG_DEVICE)
def test_a_tensor_on_the_wrong_device_is_an_error(measured, name):
    result = measured(replace(TINY, fault=name))
    assert "Expected all tensors to be on the same device" in result["text"]


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_takes_too_much_is_found(measured, has_dynamic_vram, name):
    case, told = TOO_MUCH[name]
    if case.memory.startswith("dynamic") and not has_dynamic_vram:
        pytest.skip("this version of ComfyUI has no dynamic VRAM")
    assert not broken(measured(case), Limits())
    (found,) = broken(measured(replace(case, fault=name)), Limits())
    assert told in found


def test_every_fault_is_planted():
    assert {*WRONG_DEVICE, *TOO_MUCH} == faults.FAULTS.keys()


@pytest.mark.parametrize("operator, lists, count", [
    ("aten::mm", [], 1),
    ("aten::_foreach_mul_", [[(32, 1536)] * 110], 1),
    ("aten::_foreach_mul_", [[(32, 1536)] * 111], 2),
    ("aten::_foreach_add_", [[()] * 110], 1),
    ("aten::_foreach_norm", [[(32, 1536)] * 110], 2),
    ("aten::_fused_adamw_", [[(32, 1536)] * 600] * 4 + [[()] * 600], 17),
    ("aten::_fused_adamw_", [[(320 * CHUNK,)]] * 4, 1),
    ("aten::_fused_adamw_", [[(320 * CHUNK + 1,)]] * 4, 2),
])
def test_lists_of_tensors_are_counted_as_cuda_starts_them(operator, lists, count):
    assert launches(operator, [[torch.Size(shape) for shape in shapes] for shapes in lists]) == count
