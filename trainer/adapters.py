"""What is trained: PEFT adapters on a proxy of the model's Linears.

The model itself must not change, so PEFT works on a tree of stand-ins that carry the same names
and no memory; each stand-in's forward calls the frozen Linear it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import nn

from .config import LoraConfig, UserError


class FrozenLinear(Protocol):
    """A Linear of the model that is not trained but lets the gradient of its input through."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""


class ProxyLinear(nn.Linear):
    """An nn.Linear to PEFT, a call of the frozen Linear to autograd."""

    def __init__(self, linear: FrozenLinear, device: torch.device) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate the weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # One number seen as a whole matrix: PEFT reads its shape, device and dtype, nobody its values.
        weight = torch.zeros((), device=device).expand(self.out_features, self.in_features)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""
        return self.linear(x)


class Adapter:
    """One LoRA over named Linears: fp32 parameters, delta = alpha / rank * B(A(x)).

    Args:
        linears: the model's Linears by their dotted name, such as `blocks.0.self_attn.q`.
        device: where the parameters live.
        seed: of the start of A (B starts at zero, so that the untrained adapter changes nothing).
    """

    def __init__(
        self, config: LoraConfig, linears: Mapping[str, FrozenLinear], device: torch.device, seed: int
    ) -> None:
        if not linears:
            raise UserError("The model has none of the Linear layers a LoRA is put on; load a Wan2.1 model.")
        self.config = config
        proxy = _proxy_tree(linears, device)
        _inject(config, proxy, list(linears), seed)
        self._layers = {name: proxy.get_submodule(name) for name in linears}
        for layer in self._layers.values():
            layer.cast_input_dtype_enabled = False  # autocast below does it without an fp32 copy of the input
        self._parameters = {
            f"{name}.{kind}.weight": getattr(layer, kind)["default"].weight
            for name, layer in self._layers.items()
            for kind in ("lora_A", "lora_B")
        }

    @property
    def num_modules(self) -> int:
        """Linears that carry an adapter."""
        return len(self._layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves, in the order of `state_dict`."""
        return list(self._parameters.values())

    def forward_of(self, name: str, compute_dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function that takes the place of the named Linear's forward while the adapter is in place."""
        layer = self._layers[name]
        if compute_dtype == torch.float32:
            return layer
        device_type = self.parameters[0].device.type

        def forward(x: torch.Tensor) -> torch.Tensor:
            # fp32 parameters, matrix products in the model's own dtype
            with torch.autocast(device_type, dtype=compute_dtype):
                return layer(x)

        return forward

    def state_dict(self) -> dict[str, torch.Tensor]:
        """fp32 copies on the CPU: `<module>.lora_A.weight` (rank, in), `<module>.lora_B.weight` (out, rank)."""
        return {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a `state_dict` back.

        Raises:
            UserError: other modules or another rank than this adapter has.
        """
        if state.keys() != self._parameters.keys():
            raise UserError(f"The adapter has {len(self._parameters)} matrices, the saved one {len(state)} others; "
                            "use one that was trained on the same modules.")
        with torch.no_grad():
            for key, value in state.items():
                if value.shape != self._parameters[key].shape:
                    raise UserError(f"{key} has the shape {tuple(value.shape)}, this adapter needs "
                                    f"{tuple(self._parameters[key].shape)}; set the same rank.")
                self._parameters[key].copy_(value)


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


def _inject(config: LoraConfig, proxy: nn.Module, names: list[str], seed: int) -> None:
    import peft  # imports transformers: slow, and only needed when training starts

    lora = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, bias="none")
    # PEFT draws from the global generator; lend it one of ours and give the user's back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(lora, proxy)
