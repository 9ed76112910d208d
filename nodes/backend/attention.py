"""Attention while training: PyTorch's own operator, checked to run and to have the right gradient.

ComfyUI may run sage or flash attention, packs replace attention for the whole process, and such kernels have no
backward: q, k and v would learn nothing, without an error.

Shape legend: B batch, L queries, K keys, D width of the model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext, suppress
from types import ModuleType

import comfy.ops
import torch
from torch.nn.attention import sdpa_kernel

from ...trainer.base.errors import UserError
from ...trainer.blocks.attention import BiasedAttention, by_head
from ...trainer.blocks.kept import NOTHING, Kept
from .carried import origin

SELF_TEST_TOKENS, SELF_TEST_KEYS = 160, 40
SELF_TEST_VALUES = 256 * 1024
"""Of the queries, at most."""
SELF_TEST_ERROR = 5e-2
"""Allowed relative error of an output or a gradient; bf16 makes about 1e-2, a gradient that is not there 1."""


class Attention(BiasedAttention):
    """Takes the place of whatever attention ComfyUI would run, as its `optimized_attention_override`."""

    def __init__(self, bias_BK: torch.Tensor) -> None:
        super().__init__(bias_BK)
        self.calls = 0

    def __call__(self, _function, q_BLD, k_BKD, v_BKD, heads: int, **_options) -> torch.Tensor:
        """As ComfyUI's optimized_attention, recorded by autograd."""
        self.calls += 1
        return attend(q_BLD, k_BKD, v_BKD, heads, self.bias(k_BKD))

    def forward(self, q_BLHd, k_BKHd, v_BKHd, saves: bool, kept: Kept = NOTHING):
        """As trainer/blocks/wan_branches.py takes it."""
        self.calls += 1
        return super().forward(q_BLHd, k_BKHd, v_BKHd, saves, kept)


def attend(
    q_BLD: torch.Tensor, k_BKD: torch.Tensor, v_BKD: torch.Tensor, heads: int, bias_B11K: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of each head, joined: (B, L, D)."""
    return by_head(*(x.unflatten(-1, (heads, -1)) for x in (q_BLD, k_BKD, v_BKD)), bias_B11K).flatten(-2)


def kernels() -> AbstractContextManager:
    """Has PyTorch's kernels tried in ComfyUI's order, in forward and in what is computed again in backward.

    ComfyUI has one on NVIDIA cards alone.
    """
    priority = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    return nullcontext() if priority is None else sdpa_kernel(priority, set_priority=True)


def self_test(heads: int, head_width: int, device: torch.device, dtype: torch.dtype) -> None:
    """Compare `attend` and its gradients, with and without a bias, with attention written out in fp32.

    Args:
        device, dtype: of the activations in training.

    Raises:
        UserError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    heads = max(1, min(heads, SELF_TEST_VALUES // (SELF_TEST_TOKENS * head_width)))
    width = heads * head_width

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for has_bias in (False, True):
        keys = SELF_TEST_KEYS if has_bias else SELF_TEST_TOKENS
        inputs = [random(1, tokens, width).requires_grad_() for tokens in (SELF_TEST_TOKENS, keys, keys)]
        bias_B11K = random(1, 1, 1, keys) if has_bias else None
        grad_BLD = random(1, SELF_TEST_TOKENS, width)
        with torch.enable_grad():
            output = attend(*inputs, heads, bias_B11K)
            # something of q is added, since autograd raises where a kernel has no backward at all
            found = torch.autograd.grad(output + 0 * inputs[0], inputs, grad_BLD, allow_unused=True)
        expected = _written_out(*(x.detach().float() for x in inputs), heads, bias_B11K, grad_BLD.float())
        for name, ours, truth in zip(("output", "q", "k", "v"), (output, *found), expected, strict=True):
            error = _relative(ours, truth)
            if not error <= SELF_TEST_ERROR:
                what = "result" if name == "output" else f"gradient of {name}"
                raise UserError(
                    f"PyTorch's attention gives no right {what} here ({'with' if has_bias else 'without'} a bias, "
                    f"relative error {error:.2g}); another pack has probably replaced it, so start ComfyUI without the "
                    "packs that speed up attention.")


def replaced() -> str | None:
    """A sentence where another pack's kernel stands in the place of PyTorch's attention, for the whole process."""
    theirs = torch.nn.functional.scaled_dot_product_attention
    if theirs is torch._C._nn.scaled_dot_product_attention:
        return None
    return (f"torch.nn.functional.scaled_dot_product_attention is {origin(theirs)} here; trained with PyTorch's own "
            "instead.")


def check_reached(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError if the attention that the network calls does not lead to ours.

    Args:
        module: the Python module of the network, in which packs put their own.
    """
    x_BLD = torch.zeros(1, 8, 64, device=device, dtype=dtype)
    ours = Attention(torch.zeros(1, 1))
    with torch.no_grad(), suppress(Exception):  # kernels of others may take no such input, which says enough
        module.optimized_attention(
            x_BLD, x_BLD, x_BLD, heads=1, transformer_options={"optimized_attention_override": ours})
    check_calls(ours, 1, module)


def check_calls(ours: Attention, expected: int, module: ModuleType) -> None:
    """Raises UserError if another attention than ours answered one of the network's layers."""
    if ours.calls != expected:
        raise UserError(f"Of {expected} calls of attention {ours.calls} can be trained through: "
                        f"{module.__name__}.optimized_attention is {origin(module.optimized_attention)} here; start "
                        "ComfyUI without the pack that put it there.")


def _written_out(q, k, v, heads: int, bias_B11K, grad_BLD) -> tuple[torch.Tensor, ...]:
    """Output and gradients of q, k and v, by the formulas, in fp32.

    With P = softmax(S) and o = P v: dv = P^T do, dP = do v^T, dS = P (dP - sum of P dP over the keys).
    """
    q, k, v, grad = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v, grad_BLD))
    scale = 1 / math.sqrt(q.shape[-1])
    logits = q @ k.mT * scale
    if bias_B11K is not None:
        logits = logits + bias_B11K.float()
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    grad_weights = grad @ v.mT
    grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) * scale
    results = weights @ v, grad_logits @ k, grad_logits.mT @ q, weights.mT @ grad
    return tuple(x.transpose(1, 2).flatten(-2) for x in results)


def _relative(ours: torch.Tensor | None, truth: torch.Tensor) -> float:
    if ours is None:
        return 1.0
    return float((ours.detach().float() - truth).norm() / truth.norm())
