"""Host and card: a step waits for the card once at most, to read its own numbers, and nothing else is read from it.

On a CPU nothing waits; but what would on a card can be counted: a number that is read out of a tensor, and a tensor
whose size depends on values. Copies to the card are counted on tensors without data (tests/fake_cuda).
"""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wantune.tests.support import fixed, tools
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig
from wantune.trainer.training import loop, results
from wantune.trainer.training.run import Run

pytestmark = pytest.mark.usefixtures("comfy")

READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")
"""Operators whose result the host needs to go on."""


class Reads(TorchDispatchMode):
    """Counts what reads values of tensors, and notes from where."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def note(self, what: str) -> None:
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
        self.found.append(f"{what} at {[frame for frame in frames if '/torch/' not in frame][-3:]}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in READING or (name in ("index", "index_put_") and any(
                each is not None and each.dtype == torch.bool for each in args[1])):
            self.note(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    """Watches `train_step` and what is read after it; gives the reads of each step, and those of its numbers."""
    reads, steps, numbers = Reads(), [], []
    step, read = loop.Trainer.train_step, results.Numbers.read

    def train_step(trainer):
        numbers.append(0)
        before = len(reads.found)
        with reads:
            step(trainer)
        steps.append(reads.found[before:])

    def read_once(self):
        numbers[-1] += self._read is None
        return read(self)

    def noted(name):
        original = getattr(torch.Tensor, name)

        def method(tensor, *args, **kwargs):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is reads:
                reads.note(name)
            return original(tensor, *args, **kwargs)

        return method

    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    monkeypatch.setattr(loop.Trainer, "train_step", train_step)
    monkeypatch.setattr(results.Numbers, "read", read_once)
    monkeypatch.setattr(loop, "num_late", lambda device: 1)
    return steps, numbers


def train(model, dataset, folder, **settings) -> None:
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    config = TrainConfig(**{"epochs": 9, "max_steps": 5, "batch_size": 2, "lora": LoraConfig(rank=4),
                            "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0), **settings})
    for _ in Run(ComfyDenoiser(model), dataset, "waits", config, folder).events():
        pass


CASES = {
    "checkpointing": {},
    "nothing computed again": {"gradient_checkpointing": False},
    "dropout, accumulation": {"lora": LoraConfig(rank=4, dropout=0.1), "optimizer": OptimizerConfig(accumulation=2)},
    "LoKr": {"lora": LoraConfig(rank=4, kind="lokr")},
    "LoHa": {"lora": LoraConfig(rank=4, kind="loha", dropout=0.1)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_nothing_and_its_numbers_are_read_once(tmp_path, counted, case, dtype):
    """With fp16 the loss scaler decides on the card too."""
    model = tools.load_dit(fixed.dit(tmp_path))
    model.set_model_compute_dtype(dtype)
    train(model, fixed.dataset(tmp_path / "data"), tmp_path / "runs", **CASES[case])
    steps, numbers = counted
    assert steps == [[]] * 5
    assert numbers == [0, 1, 1, 1, 2], "the last step is read at once"


@pytest.mark.parametrize("optimizer", [OptimizerConfig(ema_decay=0.9), OptimizerConfig(name="lion")],
                         ids=lambda optimizer: optimizer.name)
def test_who_must_know_whether_a_step_is_skipped_waits_for_that_alone(tmp_path, counted, optimizer):
    train(tools.load_dit(fixed.dit(tmp_path)), fixed.dataset(tmp_path / "data"), tmp_path / "runs", optimizer=optimizer)
    steps, numbers = counted
    assert [len(reads) for reads in steps] == [1] * 5 and all("results.py" in reads[0] for reads in steps)
    assert numbers == [1] * 5


def test_a_planted_read_is_seen(tmp_path, counted, monkeypatch):
    from wantune.trainer.training import objective

    loss = objective.denoising_loss
    for plant in (lambda t_B: t_B.max().item(), lambda t_B: bool((t_B > 0.5).any()), lambda t_B: t_B[t_B > 0.5],
                  lambda t_B: t_B.tolist(), lambda t_B: t_B.cpu()):
        def planted(denoiser, latent, conditions, t_B, *args, plant=plant):
            plant(t_B)
            return loss(denoiser, latent, conditions, t_B, *args)

        counted[0].clear()
        monkeypatch.setattr(objective, "denoising_loss", planted)
        train(tools.load_dit(fixed.dit(tmp_path)), fixed.dataset(tmp_path / "data"), tmp_path / f"{id(plant)}")
        assert [len(reads) for reads in counted[0]] == [1] * 5, counted[0]
