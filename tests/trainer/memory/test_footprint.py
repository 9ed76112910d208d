"""The sizes that the memory plan counts with, against real adapters and real optimizers."""

from __future__ import annotations

import pytest
import torch

from wantune.trainer.adapter.adapter_size import adapter_size
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.memory import footprint
from wantune.trainer.settings.training import OPTIMIZERS, LoraConfig, OptimizerConfig
from wantune.trainer.training.optim import build_optimizer

SIZES = {"q": (96, 96), "up": (224, 96), "down": (96, 224), "odd": (97, 96)}


class Linear(torch.nn.Linear):
    """What an adapter is put on."""


@pytest.mark.parametrize("config", [
    LoraConfig(rank=4), LoraConfig(rank=8, kind="rslora"), LoraConfig(rank=4, kind="loha"),
    LoraConfig(rank=4, kind="lokr"), LoraConfig(rank=100, kind="lokr"), LoraConfig(rank=2, kind="lokr", lokr_factor=-1),
    LoraConfig(rank=2, kind="lokr", lokr_factor=5), LoraConfig(rank=4, targets="up|down")])
def test_the_size_of_an_adapter_is_known_before_there_is_one(config):
    sizes = {f"blocks.{number}.{name}": size for number in range(2) for name, size in SIZES.items()}
    linears = {name: Linear(columns, rows) for name, (rows, columns) in sizes.items()}
    parameters = Adapter(config, linears, torch.device("cpu"), 0).parameters
    size = adapter_size(config, sizes)
    assert size.numbers == sum(parameter.numel() for parameter in parameters)
    assert size.sides == sum(sum(parameter.shape) for parameter in parameters)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_what_optimizers_remember_is_counted(name):
    parameters = [torch.nn.Parameter(torch.randn(32, 512)), torch.nn.Parameter(torch.randn(512, 32))]
    optimizer = build_optimizer(OptimizerConfig(name=name), 1e-4, parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor))
    of_numbers, of_sides = footprint.OPTIMIZER_STATE[name]
    counted = (of_numbers * sum(parameter.numel() for parameter in parameters)
               + of_sides * sum(sum(parameter.shape) for parameter in parameters))
    assert counted == pytest.approx(held, rel=0.01)
