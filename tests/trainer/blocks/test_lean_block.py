"""What a block keeps and computes again under each plan, with branches that count; and parking and keeping alone."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from wantune.trainer.blocks.kept import ATTENTION, HIDDEN, TEXT, Kept
from wantune.trainer.blocks.lean_block import LeanBlock
from wantune.trainer.blocks.parking import Parking
from wantune.trainer.memory.plan import BRANCH, Plan

PLANS = {
    "whole": None,
    "block": Plan(),
    "branch": Plan(segments=BRANCH),
    "block, attention kept": Plan(keeps_attention=True),
    "branch, attention kept": Plan(segments=BRANCH, keeps_attention=True),
}


class Cubed:
    """x + w x^3, with a part that may be kept; counts what it computes."""

    def __init__(self, weight: float) -> None:
        self.weight, self.grad = weight, 0.0
        self.forwards = self.cubes = self.unread = self.backwards = 0

    def forward(self, x_BLD, inputs, saves, reads, kept):
        self.forwards += 1
        self.unread += not reads

        def cube():
            self.cubes += 1
            return x_BLD**3

        cubed = kept(ATTENTION, cube)
        return x_BLD + self.weight * cubed if reads else None, (x_BLD, cubed) if saves else None

    def backward(self, saved, grad_BLD, inputs, needs_x):
        x_BLD, cubed = saved
        self.backwards += 1
        self.grad += float((grad_BLD * cubed).sum())
        return grad_BLD + grad_BLD * self.weight * 3 * x_BLD**2 if needs_x else None


class Around:
    """What encloses the computations, in the order in which it was entered."""

    def __init__(self) -> None:
        self.entered, self.is_inside = [], False

    @contextmanager
    def __call__(self, part):
        self.entered.append(part)
        self.is_inside = True
        yield
        self.is_inside = False


def block_of(plan, trains=(True, True, True), parking=None):
    branches, first, again = [Cubed(weight) for weight in (0.3, -0.2, 0.5)], Around(), Around()
    return LeanBlock(branches, trains, plan, first, again, False, parking), branches, first, again


def truth(x):
    x = x.clone().requires_grad_()
    weights = [torch.tensor(weight, requires_grad=True) for weight in (0.3, -0.2, 0.5)]
    y = x
    for weight in weights:
        y = y + weight * y**3
    y.sum().backward()
    return y.detach(), x.grad, [float(weight.grad) for weight in weights]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_plan_gives_the_same_and_computes_no_more_than_it_says(plan):
    x = torch.rand(2, 3, 4)
    y_truth, grad_truth, weights_truth = truth(x)
    block, branches, first, again = block_of(plan)
    start = x.clone().requires_grad_()
    y = block(start, None)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), y_truth)
    torch.testing.assert_close(start.grad, grad_truth)
    assert [branch.grad for branch in branches] == pytest.approx(weights_truth, rel=1e-5)
    is_whole, by_branch = plan is None, plan is not None and plan.segments == BRANCH
    assert [branch.forwards for branch in branches] == ([1] * 3 if is_whole else [2] * 3)
    # what ends a part is not computed again
    assert [branch.unread for branch in branches] == ([0] * 3 if is_whole else [1] * 3 if by_branch else [0, 0, 1])
    is_kept = is_whole or plan.keeps_attention
    assert [branch.cubes for branch in branches] == ([1] * 3 if is_kept else [2] * 3)
    assert first.entered == [None]
    assert again.entered == ([2, 1, 0] if by_branch else [None]), "around the gradient where nothing is computed again"
    assert not first.is_inside and not again.is_inside


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(("trains", "needs_x", "backwards"), [
    ((True, True, True), True, [1, 1, 1]),
    ((False, False, False), True, [1, 1, 1]),
    ((False, False, True), False, [0, 0, 1]),
    ((False, True, False), False, [0, 1, 1]),
    ((False, False, False), False, [0, 0, 0]),
])
def test_no_gradient_is_computed_that_nobody_asks_for(plan, trains, needs_x, backwards):
    x = torch.rand(2, 3, 4)
    block, branches, _, _ = block_of(plan, trains)
    y = block(x.clone().requires_grad_(needs_x), None)
    assert y.requires_grad == (needs_x or any(trains))
    if y.requires_grad:
        y.sum().backward()
    assert [branch.backwards for branch in branches] == backwards
    with torch.no_grad():
        assert not block(x, None).requires_grad


def test_kept_values_come_back_in_their_order_and_are_let_go_of():
    made = []

    def make(value):
        made.append(value)
        return [value]

    kinds = TEXT, HIDDEN
    on, off = Kept(kinds), Kept(())
    for kept in (on, off):
        for _ in range(2):
            values = [kept(kind, lambda value=value: make(value)) for kind, value in zip(kinds, "ab", strict=True)]
            assert values == [["a"], ["b"]]
            assert kept(ATTENTION, lambda: "not kept") == "not kept"
            kept.begin_again()
    assert made == ["a", "b", "a", "b", "a", "b"] and on._values == [None, None]
    assert on.keeps(TEXT) and on.of(ATTENTION) is None and off.of(TEXT) is None
    assert Kept({TEXT}).of(TEXT)(lambda: "c") == "c"


@pytest.fixture
def streams(monkeypatch):
    """CUDA's streams on a machine without them: what is enqueued is done at once and written down."""
    done = []

    class Stream:
        def __init__(self, _device=None):
            pass

        def wait_stream(self, _other):
            done.append("waits for the computation")

        def record_event(self):
            return f"event {len(done)}"

        def wait_event(self, event):
            done.append(event)

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **options: empty(*args, **options))
    return done


def test_inputs_that_wait_in_ram_come_back_and_the_one_before_is_fetched_meanwhile(streams):
    parking = Parking(torch.device("cpu"))
    for _ in range(2):
        tensors = [torch.rand(3, 4) for _ in range(4)]
        parked = [parking.put(tensor) for tensor in tensors]
        for number in reversed(range(4)):
            assert torch.equal(parking.take(parked[number]), tensors[number])
            fetched = [each.fetched is not None for each in parked]
            assert fetched == [each == number - 1 for each in range(4)], "only the next one is fetched ahead"
    assert len(parking._free[((3, 4), torch.float32)]) == 4, "pinned memory is used again"


def test_a_block_whose_input_waits_in_ram_gives_the_same(streams):
    x = torch.rand(2, 3, 4)
    for plan in (Plan(inputs_in_ram=True), Plan(segments=BRANCH, inputs_in_ram=True)):
        parking = Parking(torch.device("cpu"))
        first, last = (block_of(plan, parking=parking)[0] for _ in range(2))
        start = x.clone().requires_grad_()
        last(first(start, None), None).sum().backward()
        plain = x.clone().requires_grad_()
        block_of(None)[0](block_of(None)[0](plain, None), None).sum().backward()
        torch.testing.assert_close(start.grad, plain.grad)
        assert sum(len(free) for free in parking._free.values()) == (6 if plan.segments == BRANCH else 2)
