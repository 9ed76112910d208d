"""AdamW over pieces of memory does, bit for bit, what torch's does over the matrices, and goes on from its state."""

import math

import pytest
import torch

from wantune.tests.support.adapted import FixedLinear
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig
from wantune.trainer.training.flat_adamw import clip
from wantune.trainer.training.optim import build_optimizer, optimizer_of

SIZES = {"attn.q": (16, 48), "attn.k": (16, 48), "ffn": (16, 80)}
"""in_features and out_features; with rank 3 matrices end where the next one may not begin, but, as Wan's, with numbers
that a processor computes at once, 16 of them: single ones it rounds otherwise."""

OPTIONS = OptimizerConfig(weight_decay=0.1)


class Trained:
    """An adapter over two blocks, and an optimizer of the one kind or the other."""

    def __init__(self, in_pieces: bool, dtype: torch.dtype = torch.float32, kind: str = "lora") -> None:
        self.linears = {f"blocks.{block}.{name}": FixedLinear(torch.zeros(rows, columns))
                        for block in range(2) for name, (columns, rows) in SIZES.items()}
        self.adapter = Adapter(LoraConfig(rank=3, alpha=3.0, kind=kind), self.linears, torch.device("cpu"), seed=0)
        self.dtype = dtype
        if in_pieces:
            self.optimizer = optimizer_of(self.adapter, OPTIONS, 0.1)
        else:
            self.optimizer = build_optimizer(OPTIONS, 0.1, self.adapter.parameters)

    def backward(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        for name, linear in self.linears.items():
            group = self.adapter.linears_of([name], self.dtype)
            _, saved = group.forward(random(4, linear.in_features), saves=True)
            group.backward(saved, (random(4, linear.out_features),), needs_x=False)
        self.adapter.collect_gradients()

    def step(self, number: int, limit: float = 0.5) -> torch.Tensor:
        for batch in range(2):
            self.backward(2 * number + batch)
        trained = self.adapter.trained
        norm = clip(trained, limit, self.adapter.split) if self.adapter.is_in_pieces else (
            torch.nn.utils.clip_grad_norm_(trained, limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def values(self) -> list[torch.Tensor]:
        return list(self.adapter.state_dict().values())


def same(ours: list[torch.Tensor], truth: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(ours, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_norms_and_state_are_those_of_an_adamw_over_the_matrices(dtype):
    ours, truth = Trained(True, dtype), Trained(False, dtype)
    assert len(ours.adapter.trained) == 2 and len(ours.adapter.parameters) == 12
    for number in range(4):
        limit = 0.5 if number else math.inf
        assert torch.equal(ours.step(number, limit), truth.step(number, limit))
        assert same(ours.values(), truth.values())
    told, expected = ours.optimizer.state_dict(), truth.optimizer.state_dict()
    assert told["param_groups"] == expected["param_groups"] and told["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert told["state"][number].keys() == state.keys()
        assert same(list(told["state"][number].values()), list(state.values()))


@pytest.mark.parametrize("saved_in_pieces, goes_on_in_pieces", [(True, True), (True, False), (False, True)])
def test_it_goes_on_from_the_state_of_either(saved_in_pieces, goes_on_in_pieces):
    before, whole = Trained(saved_in_pieces), Trained(False)
    after = Trained(goes_on_in_pieces)
    after.optimizer.load_state_dict(after.optimizer.state_dict())  # of before the first step
    for number in range(2):
        before.step(number), whole.step(number)
    after.adapter.load_state_dict(before.adapter.state_dict())
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    assert after.optimizer.state_dict()["state"][0]["step"] == 2
    for number in range(2, 4):
        after.step(number), whole.step(number)
    assert same(after.values(), whole.values())


def test_a_backward_that_did_not_come_to_its_end_leaves_no_gradient():
    trained = Trained(True)
    trained.backward(0)
    trained.adapter.discard_gradients()
    assert all(parameter.grad is None for parameter in trained.adapter.trained)


def test_gradients_in_16_bits_never_take_more_than_all_in_fp32():
    """Half of what is left at a time; what is put into fp32 is let go of in its former dtype."""
    from wantune.trainer.adapter import block_parameters

    class Waiting:
        def __init__(self, number: int) -> None:
            self._gradient = torch.full((64,), float(number), dtype=torch.bfloat16)

    blocks = [Waiting(number) for number in range(30)]
    held, copied = [], torch._foreach_copy_

    def watched(after, before):
        held.append(sum(block._gradient.nbytes for block in blocks) + sum(tensor.nbytes for tensor in after))
        copied(after, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", watched)
        block_parameters.in_fp32(blocks)
    assert len(held) == 5 and max(held) <= 30 * 64 * 4 + 64 * 2
    assert all(block._gradient.dtype == torch.float32 for block in blocks)
    assert [float(block._gradient[0]) for block in blocks] == [float(number) for number in range(30)]


@pytest.mark.parametrize("kind", ["lokr", "loha"])
def test_matrices_that_lie_in_no_piece_are_trained_as_they_are(kind):
    adapter = Trained(True, kind=kind).adapter
    assert all(trained is parameter for trained, parameter in zip(adapter.trained, adapter.parameters, strict=True))
    assert adapter.split(adapter.trained) == adapter.trained
