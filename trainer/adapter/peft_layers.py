"""PEFT makes the adapter's parameters: their shapes, their initialization, LoHa's and LoKr's dW.

The model itself must not change, so PEFT works on a tree of stand-ins that carry the same names and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from ..settings.training import LoraConfig
from .adapter_kinds import DEFAULT
from .linears import FrozenLinear


class ProxyLinear(nn.Linear):
    """An nn.Linear as far as PEFT can tell; its forward calls the frozen Linear that it stands for."""

    def __init__(self, linear: FrozenLinear, device: torch.device) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate the weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # One zero expanded to (out, in): PEFT reads the weight's shape, device and dtype, and nothing reads its values.
        weight = torch.zeros((), device=device).expand(self.out_features, self.in_features)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""
        return self.linear(x)


def layers_over(
    config: LoraConfig, linears: Mapping[str, FrozenLinear], device: torch.device, seed: int
) -> dict[str, nn.Module]:
    """A PEFT layer for each Linear, by its name; its base layer is a stand-in that calls the Linear.

    Args:
        device: where the parameters live.
        seed: of the random initialization.
    """
    proxy = _proxy_tree(linears, device)
    _inject(config, proxy, list(linears), device, seed)
    return {name: proxy.get_submodule(name) for name in linears}


def parameters_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters in one PEFT layer, by the names of the matrices in LoRA files."""
    found = {}
    for kind in layer.adapter_layer_names:
        held = getattr(layer, kind)
        if DEFAULT in held:
            value = held[DEFAULT]
            found |= {f"{kind}.weight": value.weight} if isinstance(value, nn.Module) else {kind: value}
    return found


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's global generators of the CPU and of the device, and restores their states on exit."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    backend = getattr(torch, device.type)
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        with getattr(backend, "device", nullcontext)(device):
            backend.manual_seed(seed)  # torch.manual_seed would reach every other device too
        yield


def _proxy_tree(linears: Mapping[str, FrozenLinear], device: torch.device) -> nn.Module:
    root = nn.Module()
    for name, linear in linears.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, nn.Module())
            node = getattr(node, parent)
        node.add_module(leaf, ProxyLinear(linear, device))
    return root


def _inject(config: LoraConfig, proxy: nn.Module, names: list[str], device: torch.device, seed: int) -> None:
    import peft  # imports transformers: slow, and only needed when training starts

    common = {"r": config.rank, "target_modules": names}
    if config.kind == "lokr":
        adapter = peft.LoKrConfig(**common, alpha=config.alpha, decompose_factor=config.lokr_factor)
    elif config.kind == "loha":
        adapter = peft.LoHaConfig(**common, alpha=config.alpha)
    else:
        adapter = peft.LoraConfig(**common, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none",
                                  use_rslora=config.kind == "rslora")
    # PEFT initializes from torch's global generators; the user's states are restored afterwards
    with seeded(device, seed):
        peft.inject_adapter_in_model(adapter, proxy)
