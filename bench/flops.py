"""Matrix products of a training step: by formula for ours, and counted as they run for everyone.

A product of (m, k) and (k, n) is 2 m k n floating point operations. Everything else of a step (norms, RoPE, GELU,
softmax, AdamW) is less than a thousandth of them at the sizes of Wan2.1 and is left out.

Of one block, for N video tokens, K text rows, width d, feed-forward width f and rank r:

| part | forward | gradient of its input |
|---|---|---|
| self-attention q, k, v, o | 8 N d^2 | the same; in the first block o alone, whose input alone needs it |
| self-attention itself | 4 N^2 d | 10 N^2 d, since the kernels compute the logits again |
| cross-attention q, o | 4 N d^2 | the same |
| cross-attention k, v | 4 K d^2 | none: the text is not trained |
| cross-attention itself | 4 N K d | 10 N K d |
| ffn.0, ffn.2 | 4 N d f | the same |
| LoRA of a Linear of n rows | 2 n r (in + out) | the same, without 2 n r in where nothing needs it |

The gradients of A and B are another 2 n r (in + out). The weights themselves have none, which is what a LoRA saves over
training the model: a third. A block that is computed again costs its forward pass once more, but for what nothing in
backward reads: see `Again`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

LATENT_VALUES = 16 * 4
"""Of one token, in Wan2.1."""
TEXT_WIDTH, TIME_WIDTH = 4096, 256
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution"}
"""PyTorch's names of them, besides attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes that a step's products depend on."""

    dim: int
    ffn_dim: int
    blocks: int
    tokens: int
    """Of one sample."""
    text_rows: int
    """Of one sample, as the network gets them."""
    rank: int
    batch_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """What backward computes a second time."""

    blocks: int = 0
    """How many of the blocks."""
    without: frozenset[str] = frozenset()
    """Of these: "ffn.2", "self_attn.o", "cross_attn.o" (their product with the base weight and with B), "self_attn"
    (self-attention itself), "text" (keys and values of the text), "A" (those with A)."""


def forward(shape: Shape, without: frozenset[str] = frozenset()) -> int:
    """Operations of one block's forward pass."""
    n, k = shape.batch_size * shape.tokens, shape.batch_size * shape.text_rows
    d, f, r = shape.dim, shape.ffn_dim, shape.rank
    rows = {"self_attn.q": n, "self_attn.k": n, "self_attn.v": n, "self_attn.o": n, "cross_attn.q": n,
            "cross_attn.k": k, "cross_attn.v": k, "cross_attn.o": n}
    linears = {name: (count, d, d) for name, count in rows.items()} | {"ffn.0": (n, d, f), "ffn.2": (n, f, d)}
    total = 4 * n * ((0 if "self_attn" in without else shape.tokens) + shape.text_rows) * d
    for name, (count, inputs, outputs) in linears.items():
        if "text" in without and name in ("cross_attn.k", "cross_attn.v"):
            continue
        total += 0 if "A" in without else 2 * count * r * inputs
        total += 0 if name in without else 2 * count * outputs * (inputs + r)
    return total


def needed(shape: Shape) -> int:
    """Operations of a step that computes nothing twice (but the logits, as every kernel does)."""
    n, k = shape.batch_size * shape.tokens, shape.batch_size * shape.text_rows
    d, f, r = shape.dim, shape.ffn_dim, shape.rank
    square, lora, down = 2 * n * d * d, 4 * n * r * d, 2 * n * r * d
    block = forward(shape)
    block += 6 * square + 4 * n * d * f + 10 * n * (shape.tokens + shape.text_rows) * d  # gradients of inputs
    block += 2 * (6 * lora + 2 * 2 * n * r * (d + f))  # of the adapters, and through them
    block += 2 * (4 * k * r * d + 2 * k * r * d)  # of the text's k and v, which pass nothing on
    first = 3 * (square + down)  # q, k and v of the first block pass nothing on either
    around = 2 * n * LATENT_VALUES * d * 3  # the patch embedding, and the head in both directions
    around += 2 * k * (TEXT_WIDTH * d + d * d) + 2 * shape.batch_size * (TIME_WIDTH * d + 7 * d * d)
    return shape.blocks * block - first + around


def done(shape: Shape, again: Again) -> int:
    """Operations of a step with what it computes again."""
    return needed(shape) + again.blocks * forward(shape, again.without)


def counted(step) -> int:
    """Operations of the matrix products that a step really runs, attention included."""
    aten = torch.ops.aten
    # what torch's counter does not know: products added in place, and the CPU's attention
    more = {aten.addmm_: _product, aten.baddbmm_: _products,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        step()
    return counter.get_total_flops()


def alone(step: Callable[[], None]) -> Callable[[], None]:
    """What runs the matrix products of a step again, attention included, on the same tensors, and nothing else."""
    with _Products() as products:
        step()

    def run() -> None:
        with torch.no_grad():
            for function, args, kwargs in products.calls:
                function(*args, **kwargs)

    return run


class _Products(TorchDispatchMode):
    """Notes the calls; their tensors stay."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in PRODUCTS or name.startswith("_scaled_dot_product"):
            self.calls.append((function, args, kwargs))
        return function(*args, **kwargs)


def _product(_onto_shape, a_shape, b_shape, *_args, **_options) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def _products(_onto_shape, a_shape, b_shape, *_args, **_options) -> int:
    return a_shape[0] * _product(None, a_shape[1:], b_shape[1:])


def _attention(query_shape, key_shape, value_shape, *_args, **_options) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _attention_backward(_grad_shape, query_shape, key_shape, value_shape, *_args, **_options) -> int:
    return 5 * sdpa_flop_count(query_shape, key_shape, value_shape) // 2
