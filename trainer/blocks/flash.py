"""PyTorch's fused attention called by name: its result can be kept without its graph.

Flash attention (arXiv:2205.14135, arXiv:2307.08691) and, with a bias, the memory-efficient kernel (arXiv:2112.05682).
Their gradients need, besides q, k and v, the result and the logarithm of each row's sum; to compute the result again is
a quarter of the cost of attention in a step.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

aten = torch.ops.aten


class FusedAttention:
    """Of q (B, L, H, d), k and v (B, K, H, d), with a bias (B, 1, 1, K) on the logits or without."""

    def __init__(
        self, inputs_BHLd: list[torch.Tensor], bias_B11K: torch.Tensor | None, is_flash: bool
    ) -> None:
        self._inputs, self._bias, self._is_flash = inputs_BHLd, bias_B11K, is_flash

    @classmethod
    def of(
        cls, q_BLHd: torch.Tensor, k_BKHd: torch.Tensor, v_BKHd: torch.Tensor, bias_B11K: torch.Tensor | None = None
    ) -> FusedAttention | None:
        """None where PyTorch would take another kernel for them."""
        inputs = [x.transpose(1, 2) for x in (q_BLHd, k_BKHd, v_BKHd)]
        chosen = torch._fused_sdp_choice(*inputs, bias_B11K)
        is_flash = chosen == SDPBackend.FLASH_ATTENTION.value
        is_efficient = bias_B11K is not None and chosen == SDPBackend.EFFICIENT_ATTENTION.value
        if not (is_flash or is_efficient):
            return None
        if bias_B11K is not None:
            bias_B11K = bias_B11K.expand(*inputs[0].shape[:3], -1)
        return cls(inputs, bias_B11K, is_flash)

    def result(self) -> tuple[torch.Tensor, ...]:
        """The attention (B, H, L, d), and what else the gradient needs."""
        if not self._is_flash:
            return aten._scaled_dot_product_efficient_attention(*self._inputs, self._bias, True)
        if self._inputs[0].device.type == "cpu":
            return aten._scaled_dot_product_flash_attention_for_cpu(*self._inputs, attn_mask=self._bias)
        return aten._scaled_dot_product_flash_attention(*self._inputs)[:-1]

    def gradients(self, result: tuple[torch.Tensor, ...], grad_BLHd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of q, k and v, (B, L, H, d) each."""
        grad_BHLd = grad_BLHd.transpose(1, 2)
        if not self._is_flash:
            grads = aten._scaled_dot_product_efficient_attention_backward(
                grad_BHLd, *self._inputs, self._bias, *result, 0.0, [True, True, True, False])[:3]
        elif grad_BHLd.device.type == "cpu":
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_BHLd, *self._inputs, *result, 0.0, False, attn_mask=self._bias)
        else:
            *before, seed, offset = result
            grads = aten._scaled_dot_product_flash_attention_backward(
                grad_BHLd, *self._inputs, *before, 0.0, False, seed, offset)
        return tuple(grad.transpose(1, 2) for grad in grads)
