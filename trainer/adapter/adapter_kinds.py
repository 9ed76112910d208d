"""Which Linears carry an adapter, and our own forward for LoKr and LoHa, where PEFT's is expensive.

PEFT's LoKr and LoHa add `x @ dW.T` with a dW of the weight's full size: as many matrix multiplications again as the
model itself has, twice as many in backward, and dW is saved for backward. The parameters, their initialization and the
definition of dW are PEFT's; the forward is ours:

- LoKr multiplies by its two small factors, one after the other, and saves only x for backward: a third of the time that
  PEFT's forward adds, and 0.1 instead of 9 MiB saved (1536 x 1536, 1024 tokens, fp32 on a CPU).
- LoHa's dW cannot be factored like that (its rank is up to rank squared), so dW is built and saved, and a Linear takes
  two to three times as long; in fp32, because the products of its small entries would underflow in fp16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ..base.errors import UserError
from ..settings.training import LoraConfig
from .lora_linear import Switch

DEFAULT = "default"
"""PEFT's name for an adapter; each layer has only this one."""

_BLOCK = re.compile(r"\w+\.(\d+)\.")
"""The number in <blocks>.<number>.<name>, whatever the family calls its blocks."""

_ATTENTION = re.compile(r"\.(self|cross)_attn\.")


def chosen(config: LoraConfig, names: Sequence[str]) -> list[str]:
    """The names that `targets` and the block range choose, in the order given.

    Raises:
        UserError: no name is left; the message says what was asked for and what the names look like.
    """
    last = float("inf") if config.last_block == -1 else config.last_block
    in_range = []
    for name in names:
        block = _BLOCK.match(name)
        if block is None or config.first_block <= int(block[1]) <= last:
            in_range.append(name)
    if not in_range:
        raise UserError(f"The model has no block {config.first_block}, its last is {names[-1].split('.')[1]}; "
                        "choose a smaller first_block.")
    if config.targets == "all":
        return in_range
    pattern = _ATTENTION if config.targets == "attention" else re.compile(config.targets)
    found = [name for name in in_range if pattern.search(name)]
    if not found:
        raise UserError(f"targets is {config.targets!r}, which is found in none of the {len(in_range)} modules, such "
                        f"as {', '.join(in_range[:2])} or {in_range[-1]}; change it, or choose all or attention.")
    return found


def kronecker(x: torch.Tensor, w1_AC: torch.Tensor, w2_BD: torch.Tensor) -> torch.Tensor:
    """x @ kron(W1, W2).T for x (..., C * D), giving (..., A * B), without building kron(W1, W2).

    Args:
        w1_AC: W1, of A rows and C columns; w2_BD likewise.
    """
    (rows_1, columns_1), (rows_2, columns_2) = w1_AC.shape, w2_BD.shape
    x = x.unflatten(-1, (columns_1, columns_2))
    if columns_1 * rows_2 <= rows_1 * columns_2:  # the order with the smaller intermediate
        x = linear(linear(x, w2_BD).mT, w1_AC).mT
    else:
        x = linear(linear(x.mT, w1_AC).mT, w2_BD)
    return x.flatten(-2)


def lokr_delta(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """dW x of PEFT's LoKr layer, scaled: dW = kron(W1, W2), where W2 = w2_a @ w2_b or one full matrix."""
    w1_AC = layer.lokr_w1[DEFAULT] * layer.scaling[DEFAULT]
    if DEFAULT in layer.lokr_w2:
        w2_BD = layer.lokr_w2[DEFAULT]
    else:
        w2_BD = layer.lokr_w2_a[DEFAULT] @ layer.lokr_w2_b[DEFAULT]
    # checkpointed, since the intermediates are as large as x and cheap to recompute in backward
    return checkpoint(kronecker, x, w1_AC, w2_BD, use_reentrant=False, preserve_rng_state=False)


def loha_delta(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """dW x of PEFT's LoHa layer, scaled: dW = (w1_a @ w1_b) * (w2_a @ w2_b), an elementwise product."""
    with torch.autocast(x.device.type, enabled=False):
        delta_weight = layer.get_delta_weight(DEFAULT)
    return linear(x, delta_weight)


class LycorisForward:
    """base(x) + dW x, in place of the forward of PEFT's LoKr or LoHa layer.

    Dropout is LyCORIS' rank dropout: it zeroes rows of dW (output features), the same ones for all tokens, and divides
    the others by the share that is kept. With dropout 0 no random number is drawn, whereas PEFT's forward draws one at
    each call in training mode.
    """

    def __init__(
        self, layer: nn.Module, delta: Callable[[nn.Module, torch.Tensor], torch.Tensor], dropout: float, switch: Switch
    ) -> None:
        self.layer, self.delta, self.dropout = layer, delta, dropout
        self.switch = switch
        if DEFAULT in getattr(layer, "lokr_w2", ()):
            layer.scaling[DEFAULT] = 1.0  # PEFT scales a full W2 too, ComfyUI and LyCORIS only W2 = w2_a @ w2_b

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)"""
        result = self.layer.base_layer(x)
        if not self.switch.is_on:
            return result
        delta = self.delta(self.layer, x)
        if self.switch.drops and self.dropout:
            kept = (torch.rand(delta.shape[-1], device=delta.device) >= self.dropout).to(delta.dtype)
            delta = delta * (kept / kept.mean().clamp(min=1 / len(kept)))
        return result + delta
