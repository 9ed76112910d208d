"""What is trained: an adapter beside the model's Linears. PEFT makes its parameters, the forward is ours.

What is added to the weight W (out, in) of a Linear, with s = alpha / rank, B (out, rank) and A (rank, in):

- lora: s B A (arXiv:2106.09685); rslora: alpha / sqrt(rank) B A (arXiv:2312.03732)
- lokr: s kron(W1, W2); W2 = w2_a @ w2_b, or one full matrix where the rank is large, and then s = 1 as in LyCORIS and
  in ComfyUI's loader (arXiv:2309.14859; github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/lokr.py)
- loha: s (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (FedPara, arXiv:2108.06098)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ..base.errors import UserError
from ..settings.training import LoraConfig
from .adapter_kinds import DEFAULT, LycorisForward, chosen, loha_delta, lokr_delta
from .block_parameters import BlockParameters, Scratch, in_fp32
from .linears import Frozen, FrozenLinear, Linears, Recorded, Several
from .lora_linear import LoraLinears, Switch
from .peft_layers import layers_over, parameters_of, seeded

Function = Callable[[torch.Tensor], torch.Tensor]

LORA = ("lora", "rslora")
"""Kinds of adapters that are B A; the others are LyCORIS'."""


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
        self._switch = Switch()
        self._layers = layers_over(
            config, {name: linears[name] for name in chosen(config, list(linears))}, device, seed)
        self._parameters: dict[str, nn.Parameter] = {}
        for name, layer in self._layers.items():
            self._parameters |= {f"{name}.{key}": value for key, value in parameters_of(layer).items()}
        self._blocks = self._flattened() if config.kind in LORA else {}
        self._scratch = Scratch()
        self.is_in_pieces = False
        """Whether `trained` is few large tensors, one for each block of LoRA, and the gradients are theirs; only where
        it `has_pieces`."""

    def _flattened(self) -> dict[str, BlockParameters]:
        """By block; all A before all B, so that those of Linears with the same input follow each other."""
        blocks: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in sorted(self._parameters.items(), key=lambda item: ".lora_B." in item[0]):
            blocks.setdefault(block_of(name), {})[name] = parameter
        return {block: BlockParameters(parameters) for block, parameters in blocks.items()}

    @property
    def num_modules(self) -> int:
        """Number of Linears that carry an adapter."""
        return len(self._layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of `state_dict`."""
        return list(self._parameters.values())

    @property
    def has_pieces(self) -> bool:
        """Whether the parameters of each block lie in one piece of memory, as LoRA's do."""
        return bool(self._blocks)

    @property
    def trained(self) -> list[nn.Parameter]:
        """What an optimizer gets: `parameters`, or in their place the tensors in whose memory they lie."""
        return [block.piece for block in self._blocks.values()] if self.is_in_pieces else self.parameters

    def split(self, trained: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What of tensors like `trained` belongs to which of `parameters`, in their order; flat views of pieces."""
        if not self.is_in_pieces:
            return list(trained)
        found: dict[str, torch.Tensor] = {}
        for block, piece in zip(self._blocks.values(), trained, strict=True):
            found |= block.split(piece)
        return [found[name] for name in self._parameters]

    def forward_of(self, name: str, compute_dtype: torch.dtype) -> Function:
        """The function that replaces the named Linear's forward while the adapter is attached.

        For a Linear without an adapter it is the frozen Linear itself.
        """
        if name not in self._layers:
            return self._linears[name]
        if self._blocks:
            lora = self._lora((name,))
            return lambda x: lora(x)[0]
        delta = {"loha": loha_delta, "lokr": lokr_delta}[self.config.kind]
        call = LycorisForward(self._layers[name], delta, self.config.dropout, self._switch)
        if compute_dtype == torch.float32:
            return call

        def forward(x: torch.Tensor) -> torch.Tensor:
            # the parameters are fp32, the matrix multiplications run in compute_dtype
            with torch.autocast(self._device.type, dtype=compute_dtype):
                return call(x)

        return forward

    def linears_of(self, names: Sequence[str], compute_dtype: torch.dtype) -> Linears:
        """Linears of one block that have the same input, with the adapter where they have one."""
        if self._blocks and all(name in self._layers for name in names):
            lora = self._lora(names)
            if lora.are_adjacent:
                return lora
        if len(names) > 1:
            return Several([self.linears_of((name,), compute_dtype) for name in names])
        if names[0] not in self._layers:
            return Frozen([self._linears[names[0]]])
        function = self.forward_of(names[0], compute_dtype)
        return Recorded(lambda x: (function(x),))

    def _lora(self, names: Sequence[str]) -> LoraLinears:
        parameters = self._blocks[block_of(names[0])]
        return LoraLinears(names, [self._linears[name] for name in names], parameters,
                           self._layers[names[0]].scaling[DEFAULT], self.config.dropout, self._switch)

    def is_within(self, part: str) -> bool:
        """Whether a Linear of a part of the model, such as `blocks.3` or `blocks.3.ffn`, carries an adapter."""
        return any(name.startswith(f"{part}.") for name in self._layers)

    def cast(self, block: str, compute_dtype: torch.dtype, is_whole: bool) -> AbstractContextManager[None]:
        """Inside the context the values of a block's parameters are cast once, not for each Linear.

        Args:
            is_whole: whether backward uses the values too, without another `cast`.
        """
        if block not in self._blocks:
            return nullcontext()
        return self._blocks[block].cast(compute_dtype, None if is_whole else self._scratch)

    def collect_gradients(self) -> None:
        """After a backward: the gradients of LoRA's matrices become the `grad` of what is `trained`, or are added."""
        self._scratch.clear()  # what comes now, the update of all parameters, takes the most memory
        if all(parameter.grad is None for parameter in self.trained):  # else 16 bits are added to them
            in_fp32(self._blocks.values())
        for block in self._blocks.values():
            block.collect_gradients(self.is_in_pieces)

    def discard_gradients(self) -> None:
        """After a backward that did not come to its end: as if it had not begun."""
        for block in self._blocks.values():
            block.discard_gradients()
            block.piece.grad = None
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside the context the model computes what it does without the adapter."""
        self._switch.is_on = False
        try:
            yield
        finally:
            self._switch.is_on = True

    @contextmanager
    def dropout_from(self, seed: int) -> Iterator[None]:
        """Inside the context, for forward and backward of one batch, dropout is on and a function of the seed.

        Outside it nothing is dropped. torch's global generators are seeded on entry and restored on exit; with
        `config.dropout` 0 they are not touched.
        """
        if not self.config.dropout:
            yield
            return
        self._switch.drops = True
        try:
            with seeded(self._device, seed):
                yield
        finally:
            self._switch.drops = False

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


def block_of(name: str) -> str:
    """The block of a Linear or of a parameter: `blocks.3` for `blocks.3.self_attn.q`."""
    return ".".join(name.split(".")[:2])
