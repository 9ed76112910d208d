"""The small functions of a block compiled against the same not compiled."""

import importlib.util
import logging
from dataclasses import fields

import pytest
import torch

from wantune.trainer.blocks import compiled_pieces, pieces
from wantune.trainer.blocks.compiled_pieces import AUTO, OFF, ON, pieces_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HEADS, HEAD_WIDTH = 3, 8
WIDTH = HEADS * HEAD_WIDTH
EPS = 1e-6
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
"""Relative, of results and gradients; bf16 itself has steps of 0.8 %, and compiled it is rounded once, at the end."""


class Case:
    """Random arguments for all pieces."""

    def __init__(self, samples: int, tokens: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(samples * 1000 + tokens)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        angles = torch.rand(1, tokens, 1, HEAD_WIDTH // 2, generator=generator) * 6
        self.matrices = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))
        self.rotation = pieces.Rotation(self.matrices)
        self.by = pieces.Modulation(*(random(samples, 1, WIDTH) for _ in range(3)))
        self.weight, self.bias = random(2, WIDTH)
        self.weights = random(2, 1, WIDTH).float()
        self.x_BLD, self.grad_BLD, self.onto_BLD = random(3, samples, tokens, WIDTH)
        self.q_ND, self.grad_ND = random(2, samples * tokens, WIDTH)
        self.qk_2ND = random(2, samples * tokens, WIDTH)
        self.grads_3BLHd = random(3, samples, tokens, HEADS, HEAD_WIDTH)

    def results(self, of: pieces.Pieces) -> dict[str, torch.Tensor]:
        """Of every piece."""
        with torch.no_grad():
            modulated, norm = of.modulated_norm(self.x_BLD, self.by, EPS)
            _, affine = pieces.layer_norm(self.x_BLD.flatten(0, 1), self.weight, self.bias, EPS)
            rms, rms_saved = of.rms_norm(self.q_ND, self.weight, EPS)
            turned, norm_qk = of.turned_norms(self.qk_2ND, self.weights, self.rotation, EPS)
            turned_gradient = of.turned_norms_gradient(*self.grads_3BLHd, self.weights, self.rotation, norm_qk)
            return {
                "modulated_norm": modulated, "rms_norm": rms, "turned_norms": turned,
                "gradient of turned_norms": turned_gradient,
                "gradient of modulated_norm": of.modulated_norm_gradient(self.grad_ND, self.by, norm, self.onto_BLD),
                "gradient of layer_norm": of.layer_norm_gradient(self.grad_ND, affine, self.onto_BLD),
                "gradient of rms_norm": of.rms_norm_gradient(self.grad_ND, rms_saved),
            }


def assert_agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    errors = {name: float((found[name].float() - truth.float()).norm() / truth.float().norm())
              for name, truth in expected.items()}
    assert found.keys() == expected.keys() and max(errors.values()) <= tolerance, errors
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}


@pytest.fixture
def messages(monkeypatch, caplog):
    """What we log; what another test found out is not remembered."""
    compiled_pieces.obstacle.cache_clear()
    with caplog.at_level(logging.WARNING, "wantune"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "wantune"]
    compiled_pieces.obstacle.cache_clear()


def test_compiled_they_give_the_same(messages):
    case = Case(2, 7, torch.float32)
    assert_agree(case.results(pieces_of(ON, CPU)), case.results(pieces.Pieces()), TOLERANCE[torch.float32])
    assert messages() == []
    compiled, eager = pieces_of(ON, CPU), pieces_of(OFF, CPU)
    assert not any(getattr(compiled, field.name) is getattr(eager, field.name) for field in fields(eager))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_compiled_once_more_for_other_sizes_and_then_no_more(dtype, messages):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled, graphs = pieces_of(ON, CPU), []
    for samples, tokens in ((1, 7), (1, 12), (1, 30), (2, 7), (2, 30), (4, 12), (1, 7), (3, 9), (5, 12)):
        case = Case(samples, tokens, dtype)
        assert_agree(case.results(compiled), case.results(pieces.Pieces()), TOLERANCE[dtype])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[:3] == [6, 12, 12]  # modulated_norm is compiled for several samples alone
    assert graphs[5:] == [graphs[5]] * 4 and graphs[5] <= 3 * 7
    assert messages() == []


@pytest.mark.parametrize("fails_when", ["asked for", "called"])
def test_where_compiling_fails_they_go_on_without_and_say_so_once(messages, monkeypatch, fails_when):
    tried = []

    def broken(function):
        def call(*args):
            tried.append(function)
            raise RuntimeError("no compiler\nsecond line")

        return call() if fails_when == "asked for" else call

    monkeypatch.setattr(torch, "compile", broken)
    case = Case(2, 7, torch.float32)
    found = case.results(pieces_of(ON, CPU))
    assert all(torch.equal(tensor, found[name]) for name, tensor in case.results(pieces.Pieces()).items())
    assert len(tried) == 1
    assert messages() == ["Small kernels are not compiled any more: RuntimeError: no compiler"]


def test_a_lack_of_memory_is_no_failure_of_the_compiler(messages, monkeypatch):
    def without_memory(function):
        def call(*args):
            raise torch.cuda.OutOfMemoryError("full")
        return call

    monkeypatch.setattr(torch, "compile", without_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Case(2, 7, torch.float32).results(pieces_of(ON, CPU))
    assert messages() == []


def test_automatic_is_off_on_a_cpu_and_says_why_not_on_a_gpu(messages, monkeypatch):
    assert pieces_of(AUTO, CPU) == pieces.Pieces() and messages() == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        assert pieces_of(AUTO, GPU) == pieces.Pieces()
    assert messages() == 2 * [
        "Small kernels are not compiled: Triton is not installed (on Windows its package is triton-windows)."]
    assert pieces_of(OFF, GPU) == pieces.Pieces()


def test_automatic_compiles_something_first(messages, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "arange", lambda count, device: torch.zeros(8))
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: x)
    assert pieces_of(AUTO, GPU) == pieces.Pieces()
    assert messages() == ["Small kernels are not compiled: a compiled function gives another result here."]
    monkeypatch.setattr(torch, "compile", lambda function: function)
    compiled_pieces.obstacle.cache_clear()
    assert pieces_of(AUTO, GPU) != pieces.Pieces()
