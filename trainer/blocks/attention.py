"""Attention of a block by PyTorch's own operator; over the text with a bias that stands for the padding.

Shape legend: B batch, L queries, K keys, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .flash import FusedAttention
from .kept import ATTENTION, NOTHING, Kept


class BiasedAttention:
    """An `Attention` as trainer/blocks/wan_branches.py takes it.

    Cross-attention to the text, recognised by its number of keys, gets the bias that stands for the text's padding
    (trainer/model/text_padding.py).
    """

    def __init__(self, bias_BK: torch.Tensor) -> None:
        self._bias_B11K = bias_BK[:, None, None]

    @property
    def text_rows(self) -> int:
        """K of the text."""
        return self._bias_B11K.shape[-1]

    def bias(self, keys: torch.Tensor) -> torch.Tensor | None:
        """(B, 1, 1, K) for keys (B, K, ...) of the text, None for others."""
        return self._bias_B11K if keys.shape[1] == self.text_rows else None

    def forward(self, q_BLHd, k_BKHd, v_BKHd, saves: bool, kept: Kept = NOTHING):
        """As trainer/blocks/wan_branches.py takes it."""
        bias_B11K = self.bias(k_BKHd)
        with _allowed(bias_B11K):
            if fused := FusedAttention.of(q_BLHd, k_BKHd, v_BKHd, bias_B11K):
                result = kept(ATTENTION, fused.result)
                return result[0].transpose(1, 2), (fused, result) if saves else None
        if not saves:
            return by_head(q_BLHd, k_BKHd, v_BKHd, bias_B11K), None
        inputs = tuple(x.detach().requires_grad_() for x in (q_BLHd, k_BKHd, v_BKHd))
        with torch.enable_grad():
            out_BLHd = by_head(*inputs, bias_B11K)
        return out_BLHd.detach(), (inputs, out_BLHd)

    def backward(self, saved, grad_BLHd):
        """The gradients of q, k and v."""
        if isinstance(saved[0], FusedAttention):
            return saved[0].gradients(saved[1], grad_BLHd)
        inputs, out_BLHd = saved
        return torch.autograd.grad(out_BLHd, inputs, grad_BLHd)


def by_head(q_BLHd, k_BKHd, v_BKHd, bias_B11K: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of each head, (B, L, H, d), recorded by autograd.

    The operator is asked for by its name in PyTorch's dispatcher: `torch.nn.functional` may hold another pack's.
    """
    q_BHLd, k_BHKd, v_BHKd = (x.transpose(1, 2) for x in (q_BLHd, k_BKHd, v_BKHd))
    with _allowed(bias_B11K):
        out_BHLd = torch.ops.aten.scaled_dot_product_attention.default(q_BHLd, k_BHKd, v_BHKd, bias_B11K)
    return out_BHLd.transpose(1, 2)


@contextmanager
def _allowed(bias_B11K: torch.Tensor | None) -> Iterator[None]:
    """Inside the context PyTorch may choose among its kernels, but with a bias not cuDNN's.

    With one that is known to give NaN gradients, and it is built anew for each number of keys.

    Flash attention takes no bias, so the memory-efficient kernel is left, and attention written out where that cannot.
    The backward is that of the kernel which the forward took.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and bias_B11K is None)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
