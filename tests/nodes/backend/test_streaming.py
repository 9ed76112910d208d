"""Casts of weights that do not stay on the device: how many, whose memory, and that each is given back."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, compute_in_fp32, random_batch
from wantune.trainer.memory.plan import BRANCH, EVERYTHING, Plan

KINDS = {
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_scaled": {},
}
"""How the model is loaded; on a CPU ComfyUI computes in fp32 with each, so it casts the blocks' weights."""


class Casts:
    """Counts ComfyUI's casts of each module, and those that were not given back."""

    def __init__(self, monkeypatch) -> None:
        import comfy.ops

        self.made, self.out = Counter(), Counter()
        cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

        def counted(module, *args, **kwargs):
            result = cast(module, *args, **kwargs)
            self.made[module] += 1
            self.out[module] += 1
            return result

        def given_back(module, *args):
            self.out[module] -= 1
            return uncast(module, *args)

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
        monkeypatch.setattr(comfy.ops, "uncast_bias_weight", given_back)


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("streaming"))


@pytest.fixture(params=KINDS)
def adapted(request, comfy, dit_file):
    file = tools.scale_to_fp8(dit_file) if request.param == "fp8_scaled" else dit_file
    model = tools.load_dit(file, **KINDS[request.param])
    compute_in_fp32(model)
    return AdaptedModel(model)


PLANS = {
    "whole": Plan(whole_blocks=EVERYTHING),
    "block": Plan(),
    "branch": Plan(segments=BRANCH),
    "mixed": Plan(whole_blocks=1, segments=BRANCH),
}


def gradients(adapted: AdaptedModel) -> torch.Tensor:
    """Of all matrices of the adapter, after one forward and backward pass."""
    batch = random_batch((1, 4, 4), (0.3, 0.8), adapted.denoiser.device)
    return torch.cat([gradient.flatten() for gradient in adapted.gradients(adapted.loss_B(batch)).values()])


def linears_of(adapted: AdaptedModel) -> dict[str, nn.Module]:
    return {name: linear.module for name, linear in adapted.linears.items()}


@pytest.fixture
def without_holding(monkeypatch):
    """Casts are made again for the gradient."""
    from wantune.nodes.backend.streaming import Streaming

    monkeypatch.setattr(Streaming, "held", Streaming.fetched)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_step_casts_each_weight_twice_at_most(adapted, monkeypatch, plan):
    with adapted.attached(PLANS["whole"]):
        expected = gradients(adapted)
    with adapted.attached(plan):
        casts = Casts(monkeypatch)
        found = gradients(adapted)
    assert torch.equal(found, expected)
    # the first Linears have no gradient to hand on, nor have those of the text, whose results are kept
    first = {f"blocks.0.self_attn.{which}" for which in "qkv"}
    for name, module in linears_of(adapted).items():
        is_whole = int(name.split(".")[1]) >= 2 - plan.whole_blocks
        is_once = name.endswith((".cross_attn.k", ".cross_attn.v")) or name in first and is_whole
        assert casts.made[module] == (1 if is_once else 2), name
    assert not +casts.out, "casts were not given back"


def test_without_holding_it_casts_most_of_them_three_times(adapted, monkeypatch, without_holding):
    with adapted.attached(PLANS["block"]):
        casts = Casts(monkeypatch)
        gradients(adapted)
    made = Counter(casts.made[module] for module in linears_of(adapted).values())
    # but for the last of each block, those without a gradient to hand on, and those of the text
    assert made == {3: 20 - 2 - 4 - 3, 2: 2 + 3, 1: 4}


def test_backward_asks_for_a_whole_block_s_weights_at_once_in_the_order_of_its_need(adapted, monkeypatch):
    from wantune.nodes.backend.streaming import Streaming

    asked, fetched = [], Streaming.fetched

    def seen(self, part):
        asked.append({module for module in part.modules() if module in names})
        return fetched(self, part)

    with adapted.attached(PLANS["whole"]):
        names = {module: name for name, module in linears_of(adapted).items()}
        monkeypatch.setattr(Streaming, "fetched", seen)
        gradients(adapted)
    parts = [{names[module].partition(".")[2] for module in modules} for modules in asked]
    assert [part.pop().partition(".")[0] for part in map(set, parts)] == list("0110")
    of_text = {f"{number}.cross_attn.{which}" for number in range(2) for which in "kv"}
    forward, backward = parts[:2], parts[:1:-1]
    assert [part - of_text for part in forward] == backward, "the text's have no gradient to hand on"
    assert all(len(part & of_text) == 2 for part in forward)


@contextmanager
def one_buffer(monkeypatch, modules):
    """As ComfyUI 0.11.1 and newer give out offloaded weights of these modules: each cast overwrites the one before."""
    import comfy.model_management
    import comfy.ops

    buffer = torch.zeros(2**22, dtype=torch.uint8)
    cast = comfy.ops.cast_bias_weight
    stream = type("Stream", (), {})()

    def lent(module, like=None, *args, **kwargs):
        weight, bias, lender = cast(module, like, *args, **kwargs)
        if module not in modules:  # a layer whose weight is on the device already
            return weight, bias, lender
        stored = getattr(weight, "_qdata", weight)
        buffer.fill_(0x7F)  # large or NaN in any format
        view = buffer[: stored.nbytes].view(stored.dtype).view(stored.shape).copy_(stored)
        weight = view if stored is weight else weight._copy_with(qdata=view)
        return weight, bias, (stream, weight, bias)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lent)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *_args: None)
    monkeypatch.setattr(comfy.model_management, "STREAM_CAST_BUFFERS", {stream: buffer}, raising=False)
    yield


@pytest.mark.parametrize("plan", ["block", "branch"])
def test_what_later_casts_overwrite_is_copied(adapted, monkeypatch, plan):
    with adapted.attached(PLANS[plan]):
        expected = gradients(adapted)
        with one_buffer(monkeypatch, linears_of(adapted).values()):
            found = gradients(adapted)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("adapted", ["fp8_e4m3fn", "bf16"], indirect=True)
def test_without_the_copy_the_gradient_would_be_wrong(adapted, monkeypatch):
    from wantune.nodes.backend import casting

    monkeypatch.setattr(casting, "_will_be_overwritten", lambda *_args: False)
    with adapted.attached(PLANS["block"]):
        expected = gradients(adapted)
        with one_buffer(monkeypatch, linears_of(adapted).values()):
            found = gradients(adapted)
    assert not torch.allclose(expected, found)


@pytest.mark.parametrize("at", [5, 25, 30, 35])
def test_an_interruption_gives_everything_back(adapted, monkeypatch, at):
    """In the forward pass, and while a block is computed again."""
    from comfy.model_management import InterruptProcessingException

    with adapted.attached(PLANS["block"]):
        casts = Casts(monkeypatch)

        def interrupted() -> None:
            if sum(casts.made.values()) >= at:
                raise InterruptProcessingException

        monkeypatch.setattr("comfy.ops.run_every_op", interrupted)
        with pytest.raises(InterruptProcessingException):
            gradients(adapted)
        monkeypatch.undo()
        assert not any(linear.keeps_cast or linear._kept for linear in adapted.linears.values())
        adapted.adapter.discard_gradients()
        gradients(adapted)
    assert casts.made and not +casts.out


class Pages:
    """Dynamic VRAM's pins of modules, without a device."""

    def __init__(self, monkeypatch) -> None:
        import comfy.model_management
        import comfy.ops
        import comfy_aimdo.model_vbar

        self.pins, self.fetched, self.fails_at = Counter(), [], None
        monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 2)
        monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda _device: False)
        monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", self._cast)
        monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", self._unpin)
        monkeypatch.setattr(comfy.model_management, "ensure_pin_registerable", lambda *_args: True)

    def _cast(self, modules, *_args, **_kwargs):
        for module in modules:
            if module is self.fails_at:
                raise torch.OutOfMemoryError
            self.pins[module._v] += 1
            self.fetched.append(module._v)
            module._prefetch = {"signature": (1,)}
        return None, False

    def _unpin(self, pages) -> None:
        self.pins[pages] -= 1


@pytest.fixture
def pages(comfy, monkeypatch):
    pytest.importorskip("comfy.model_prefetch", reason="This version of ComfyUI has no dynamic VRAM.")
    return Pages(monkeypatch)


@pytest.fixture
def blocks():
    """Two blocks of two Linears each whose weights are in dynamic VRAM."""
    blocks = nn.ModuleList(nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            module._v = name
    return blocks


@pytest.fixture
def streaming(pages):
    from wantune.nodes.backend.streaming import Streaming

    streaming = Streaming([], torch.device("cpu"), is_dynamic=True)
    assert streaming._queue == [None]
    return streaming


def test_a_block_is_fetched_whole_and_let_go_before_the_next(pages, streaming, blocks):
    for number in (0, 1):
        with streaming.fetched(blocks[number]):
            assert +pages.pins == {f"{number}.0": 1, f"{number}.1": 1}
    for number in (1, 0):
        with streaming.held(blocks[number]):
            assert +pages.pins == {f"{number}.0": 1, f"{number}.1": 1}
    assert not +pages.pins
    assert [name[0] for name in pages.fetched] == list("00111100")


@pytest.mark.parametrize("context", ["fetched", "held"])
def test_no_pin_is_left_by_an_exception(pages, streaming, blocks, context):
    around = getattr(streaming, context)
    with pytest.raises(KeyError), around(blocks[0]):
        raise KeyError
    assert pages.fetched and not +pages.pins
    pages.fails_at = blocks[1][1]
    with pytest.raises(torch.OutOfMemoryError), around(blocks[1]):
        pass
    assert pages.fetched[-1] == "1.0" and not +pages.pins
    pages.fails_at = None
    with around(blocks[0]):
        assert +pages.pins == {"0.0": 1, "0.1": 1}
    assert not +pages.pins
