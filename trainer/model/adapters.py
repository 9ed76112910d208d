"""What is trained: PEFT adapters on a proxy of the model's Linears.

The model itself must not change, so PEFT works on a tree of stand-ins that carry the same names
and no memory; each stand-in's forward calls the frozen Linear it stands for.

What is added to the weight W (out, in) of a Linear, with s = alpha / rank, B (out, rank) and A (rank, in):

- lora: s B A (arXiv:2106.09685); rslora: alpha / sqrt(rank) B A (arXiv:2312.03732)
- lokr: s kron(W1, W2); W2 = w2_a @ w2_b, or one full matrix where the rank is large, and then s = 1 as in LyCORIS and
  in ComfyUI's loader (arXiv:2309.14859; github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/lokr.py)
- loha: s (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (FedPara, arXiv:2108.06098)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn

from ..base.errors import UserError
from ..settings.training import LoraConfig
from .adapter_kinds import DEFAULT, LycorisForward, chosen, loha_delta, lokr_delta


class FrozenLinear(Protocol):
    """A Linear of the model whose weight is not trained; the gradient flows through to its input."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""


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


class Adapter:
    """One adapter over some of the model's Linears: fp32 parameters that change nothing before they are trained.

    Args:
        linears: the model's Linears by their dotted name, such as `blocks.0.self_attn.q`; those that
            `config.targets` and the block range leave out get no adapter.
        device: where the parameters live.
        seed: of the random initialization (LoRA's B starts at zero, so that the untrained adapter changes nothing).

    Raises:
        UserError: the model has no such Linears, or `config` chooses none of them.
    """

    def __init__(
        self, config: LoraConfig, linears: Mapping[str, FrozenLinear], device: torch.device, seed: int
    ) -> None:
        if not linears:
            raise UserError("The model has none of the Linear layers a LoRA is put on; load a Wan2.1 model.")
        self.config = config
        self._linears = linears
        self._device = device
        names = chosen(config, list(linears))
        proxy = _proxy_tree({name: linears[name] for name in names}, device)
        _inject(config, proxy, names, device, seed)
        self._layers = {name: proxy.get_submodule(name) for name in names}
        self._parameters: dict[str, nn.Parameter] = {}
        self._forwards: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        for name, layer in self._layers.items():
            layer.cast_input_dtype_enabled = False  # autocast below does it without an fp32 copy of the input
            self._parameters |= {f"{name}.{key}": value for key, value in _parameters_of(layer).items()}
            self._forwards[name] = _forward_of(config, layer)
        self.train(False)

    @property
    def num_modules(self) -> int:
        """Number of Linears that carry an adapter."""
        return len(self._layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of `state_dict`."""
        return list(self._parameters.values())

    @property
    def values_per_token(self) -> float:
        """Upper bound of what autograd saves per token for the adapter in one block, in values of the compute dtype."""
        if self.config.kind not in ("lora", "rslora"):
            return 0.0  # LoKr and LoHa save next to nothing per token, see adapter_kinds.py
        # with dropout each A saves an input of its own, and a mask of one byte (half a 16-bit value) per value
        inputs = self._most_in_a_block(lambda linear: linear.in_features) if self.config.dropout else 0
        return 8 * self.config.rank + 1.5 * inputs

    @property
    def values_per_block(self) -> int:
        """Upper bound of what autograd saves for the adapter in one block whatever the number of tokens: LoHa's dW."""
        if self.config.kind != "loha":
            return 0
        return self._most_in_a_block(lambda linear: linear.in_features * linear.out_features)

    def _most_in_a_block(self, size: Callable[[FrozenLinear], int]) -> int:
        sums = Counter()
        for name in self._layers:
            sums[".".join(name.split(".")[:2])] += size(self._linears[name])
        return max(sums.values())

    def forward_of(self, name: str, compute_dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function that replaces the named Linear's forward while the adapter is attached.

        For a Linear without an adapter it is the frozen Linear itself.
        """
        if name not in self._forwards:
            return self._linears[name]
        call = self._forwards[name]
        if compute_dtype == torch.float32:
            return call
        device_type = self._device.type

        def forward(x: torch.Tensor) -> torch.Tensor:
            # the parameters are fp32, the matrix multiplications run in compute_dtype
            with torch.autocast(device_type, dtype=compute_dtype):
                return call(x)

        return forward

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside the context the model computes what it does without the adapter."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, is_on: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(is_on)

    def train(self, is_on: bool) -> None:
        """Switch dropout on or off; a new adapter has it off."""
        for forward in self._forwards.values():
            forward.train(is_on)

    @contextmanager
    def dropout_from(self, seed: int) -> Iterator[None]:
        """Inside the context, for forward and backward of one batch, dropout is on and a function of the seed.

        Outside it nothing is dropped. torch's global generators are seeded on entry and restored on exit; with
        `config.dropout` 0 they are not touched.
        """
        if not self.config.dropout:
            yield
            return
        self.train(True)
        try:
            with _seeded(self._device, seed):
                yield
        finally:
            self.train(False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """fp32 copies of the parameters on the CPU, under the key names of LoRA files (without prefix):

        LoRA: `<module>.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank). LoKr, for in = C D and out = A B:
        `.lokr_w1` (A, C), `.lokr_w2_a` (B, rank), `.lokr_w2_b` (rank, D), or `.lokr_w2` (B, D). LoHa:
        `.hada_w1_a`, `.hada_w2_a` (out, rank), `.hada_w1_b`, `.hada_w2_b` (rank, in).
        """
        return {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy the values of a `state_dict` into the parameters.

        Raises:
            UserError: its modules, kind or rank differ from those of this adapter.
        """
        if state.keys() != self._parameters.keys():
            raise UserError(f"The adapter has {len(self._parameters)} matrices, the saved one {len(state)} others; "
                            "use one that was trained on the same modules.")
        for key, value in state.items():
            if value.shape != self._parameters[key].shape:
                raise UserError(f"{key} has the shape {tuple(value.shape)}, this adapter needs "
                                f"{tuple(self._parameters[key].shape)}; set the same rank.")
        with torch.no_grad():
            for key, value in state.items():
                self._parameters[key].copy_(value)

    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Initialize from a trained LoRA; modules that it lacks keep their random initialization.

        A module of lower rank is padded: A keeps random rows and B gets zero columns, which together change nothing.

        Args:
            tensors: the matrices that `continued` in lora/file.py returns, `<module>.lora_A.weight` (rank, in) and
                `<module>.lora_B.weight` (out, rank).

        Raises:
            UserError: the LoRA has modules that this adapter leaves out, so that their training would be lost.
        """
        modules = {key.rsplit(".lora_", 1)[0] for key in tensors}
        lost = sorted(modules - self._layers.keys())
        if lost:
            advice = "set targets and the blocks so that they are trained" if set(lost) <= self._linears.keys() else (
                "it cannot be continued here; apply it with Apply LoRA and train a new one on top of it")
            raise UserError(f"The LoRA to continue has {len(lost)} modules that are not trained in this run, such as "
                            f"{lost[0]}; {advice}.")
        with torch.no_grad():
            for module in modules:
                a, b = (self._parameters[f"{module}.lora_{kind}.weight"] for kind in "AB")
                rank = len(tensors[f"{module}.lora_A.weight"])
                a[:rank].copy_(tensors[f"{module}.lora_A.weight"])
                b[:, :rank].copy_(tensors[f"{module}.lora_B.weight"])
                b[:, rank:].zero_()


def _forward_of(config: LoraConfig, layer: nn.Module) -> nn.Module | LycorisForward:
    if config.kind == "loha":
        return LycorisForward(layer, loha_delta, config.dropout)
    if config.kind == "lokr":
        if DEFAULT in layer.lokr_w2:
            layer.scaling[DEFAULT] = 1.0  # PEFT scales a full W2 too, ComfyUI and LyCORIS only W2 = w2_a @ w2_b
        return LycorisForward(layer, lokr_delta, config.dropout)
    return layer


def _parameters_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters in one PEFT layer, by the names of the matrices in LoRA files."""
    found = {}
    for kind in layer.adapter_layer_names:
        held = getattr(layer, kind)
        if DEFAULT in held:
            value = held[DEFAULT]
            found |= {f"{kind}.weight": value.weight} if isinstance(value, nn.Module) else {kind: value}
    return found


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
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
    with _seeded(device, seed):
        peft.inject_adapter_in_model(adapter, proxy)
