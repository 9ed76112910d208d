"""Flash attention (arXiv:2205.14135, arXiv:2307.08691) called by name: its result can be kept without its graph.

Its gradient needs, besides q, k and v, the result and the logarithm of each row's sum; to compute the result again is a
quarter of the cost of attention in a step.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

aten = torch.ops.aten


class FlashAttention:
    """Of q (B, L, H, d), k and v (B, K, H, d), without a bias."""

    def __init__(self, q_BHLd: torch.Tensor, k_BHKd: torch.Tensor, v_BHKd: torch.Tensor) -> None:
        self._inputs = q_BHLd, k_BHKd, v_BHKd

    @classmethod
    def of(cls, q_BLHd: torch.Tensor, k_BKHd: torch.Tensor, v_BKHd: torch.Tensor) -> FlashAttention | None:
        """None where PyTorch would take another kernel for them."""
        inputs = [x.transpose(1, 2) for x in (q_BLHd, k_BKHd, v_BKHd)]
        is_chosen = torch._fused_sdp_choice(*inputs) == SDPBackend.FLASH_ATTENTION.value
        return cls(*inputs) if is_chosen else None

    def result(self) -> tuple[torch.Tensor, ...]:
        """The attention (B, H, L, d), and what else the gradient needs."""
        if self._inputs[0].device.type == "cpu":
            return aten._scaled_dot_product_flash_attention_for_cpu(*self._inputs)
        return aten._scaled_dot_product_flash_attention(*self._inputs)[:-1]

    def gradients(self, result: tuple[torch.Tensor, ...], grad_BLHd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of q, k and v, (B, L, H, d) each."""
        grad_BHLd = grad_BLHd.transpose(1, 2)
        if grad_BHLd.device.type == "cpu":
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_BHLd, *self._inputs, *result, 0.0, False)
        else:
            *before, seed, offset = result
            grads = aten._scaled_dot_product_flash_attention_backward(
                grad_BHLd, *self._inputs, *before, 0.0, False, seed, offset)
        return tuple(grad.transpose(1, 2) for grad in grads)
