"""Attention to the tokens of an image beside those of the text (Wan2.1 image-to-video, arXiv:2503.20314, section 5).

Queries are those of the text's attention; keys and values of the image have Linears of their own, which are not
trained, and carry no gradient.

Shape legend: B batch, L queries, K keys, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .kept import NOTHING, Kept

if TYPE_CHECKING:
    from .wan_branches import Attention

Keys = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Gives k and v of the image, (B, K, H, d)."""


class WithImage:
    """An `Attention` of wan_branches.py whose result is that over the text plus that over an image.

    Args:
        attention: computes both.
        keys: computed when they are needed, in the second computation of a block anew.
    """

    def __init__(self, attention: Attention, keys: Keys) -> None:
        self._attention, self._keys = attention, keys

    def forward(self, q_BLHd, k_BKHd, v_BKHd, saves: bool, kept: Kept = NOTHING):
        """See `Attention`; k and v are of the text."""
        of_image, saved_image = self._attention.forward(q_BLHd, *self._keys(), saves, NOTHING)
        of_text, saved_text = self._attention.forward(q_BLHd, k_BKHd, v_BKHd, saves, kept)
        return of_text + of_image, (saved_text, saved_image) if saves else None

    def backward(self, saved, grad_BLHd):
        """The gradients of q, k and v."""
        saved_text, saved_image = saved
        grad_q, grad_k, grad_v = self._attention.backward(saved_text, grad_BLHd)
        return grad_q.add_(self._attention.backward(saved_image, grad_BLHd)[0]), grad_k, grad_v
