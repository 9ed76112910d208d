"""The three branches of a Wan block (Wan-Video/Wan2.1, wan/modules/model.py), each with its gradient written out.

Written out, a branch has no autograd graph: nothing is recorded, viewed or kept but what its gradient needs, and each
tensor is let go of as soon as it is used. That the gradients are right is tested against autograd.

Each `forward` gives x plus what the branch adds, and what `backward` needs; each `backward` gives the gradient of x.

Shape legend: B batch, L tokens, N rows (B x L), K text rows, D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..adapter.linears import Linears, Saved
from . import pieces
from .kept import HIDDEN, NOTHING, TEXT, Kept
from .pieces import Modulation, Pieces, Rotation

Weights = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""Weight and bias of a norm, on the device and in the dtype of a tensor."""

BothWeights = Callable[[torch.Tensor], torch.Tensor]
"""Weights (2, 1, D) of the norms of q and k, on the device of a tensor, in fp32."""


class Attention(Protocol):
    """softmax(q k^T / sqrt(d)) v of each head."""

    def forward(self, q_BLHd, k_BKHd, v_BKHd, saves: bool, kept: Kept) -> tuple[torch.Tensor, Saved]:
        """(B, L, H, d), and what `backward` needs."""

    def backward(self, saved: Saved, grad_BLHd) -> Sequence[torch.Tensor]:
        """The gradients of q, k and v."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of a block, besides x; none of them carries a gradient."""

    modulations: tuple[Modulation, Modulation]
    """Of self-attention and of the feed-forward branch; x has a first dimension as theirs."""
    samples: int
    """B; x has more than B rows of tokens where each frame of a sample has a noise level of its own."""
    rotation: Rotation
    text_ND: torch.Tensor
    """Rows (B x K)."""
    attention: Attention
    text_attention: Attention


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """x + gate o(attention(rotated norm_q(q), rotated norm_k(k), v)) of the modulated norm of x."""

    qkv: Linears
    o: Linears
    norms_qk: BothWeights
    heads: int
    eps: float
    eps_qk: float
    pieces: Pieces

    def forward(self, x_BLD, inputs: Inputs, saves: bool, reads: bool = True, kept: Kept = NOTHING):
        """See the module.

        Args:
            reads: whether the result is read; it may be None otherwise.
            kept: what is kept for a second computation, where there is one.
        """
        by = inputs.modulations[0]
        n_ND, norm = self.pieces.modulated_norm(x_BLD, by, self.eps)
        qkv_3ND, qkv = self.qkv.forward(n_ND, saves, kept=kept.of(HIDDEN))
        del n_ND
        is_one = isinstance(qkv_3ND, torch.Tensor)
        qk_2ND, v_ND = qkv_3ND[:2] if is_one else torch.stack(qkv_3ND[:2]), qkv_3ND[2]
        del qkv_3ND
        weights_21D = self.norms_qk(qk_2ND)
        qk_2BLHd, norm_qk = self.pieces.turned_norms(qk_2ND, weights_21D, inputs.rotation, self.eps_qk)
        del qk_2ND
        a_BLHd, attended = inputs.attention.forward(*qk_2BLHd, self._by_head(v_ND, inputs), saves, kept)
        (y_ND,), o = self.o.forward(a_BLHd.reshape(-1, x_BLD.shape[-1]), saves, reads, kept.of(HIDDEN))
        x_BLD = torch.addcmul(x_BLD, y_ND.view_as(x_BLD), by.gate) if reads else None
        return x_BLD, [norm, qkv, weights_21D, norm_qk, attended, o] if saves else None

    def backward(self, saved, grad_BLD, inputs: Inputs, needs_x: bool):
        """See the module."""
        norm, qkv, weights_21D, norm_qk, attended, o = saved
        saved.clear()
        by = inputs.modulations[0]
        grad_ND = self.o.backward(o, ((grad_BLD * by.gate).flatten(0, 1),), True)
        grads = inputs.attention.backward(attended, self._by_head(grad_ND, inputs))
        del attended, grad_ND
        grads_3ND = self.pieces.turned_norms_gradient(*grads, weights_21D, inputs.rotation, norm_qk)
        del grads, norm_qk
        grad_ND = self.qkv.backward(qkv, grads_3ND, needs_x)
        return self.pieces.modulated_norm_gradient(grad_ND, by, norm, grad_BLD) if needs_x else None

    def _by_head(self, rows_ND, inputs: Inputs):
        return rows_ND.view(inputs.samples, -1, self.heads, rows_ND.shape[-1] // self.heads)


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """x + o(attention(norm_q(q), norm_k(k), v)), q of norm3(x), k and v of the text."""

    q: Linears
    kv: Linears
    o: Linears
    norm3: Weights
    norm_q: Weights
    norm_k: Weights
    heads: int
    eps: float
    eps_qk: float
    pieces: Pieces

    def forward(self, x_BLD, inputs: Inputs, saves: bool, reads: bool = True, kept: Kept = NOTHING):
        """See `SelfAttention.forward`."""
        n_ND, norm = pieces.layer_norm(x_BLD.flatten(0, 1), *self.norm3(x_BLD), self.eps)
        (q_ND,), q = self.q.forward(n_ND, saves, kept=kept.of(HIDDEN))
        del n_ND
        q_ND, norm_q = self.pieces.rms_norm(q_ND, self.norm_q(q_ND)[0], self.eps_qk)
        of_text = kept if self.kv.can_wait else NOTHING
        k_ND, v_ND, kv, norm_k = of_text(TEXT, lambda: self._text(inputs, saves or of_text.keeps(TEXT)))
        q_BLHd, k_BKHd, v_BKHd = (rows_ND.view(inputs.samples, -1, self.heads, x_BLD.shape[-1] // self.heads)
                                  for rows_ND in (q_ND, k_ND, v_ND))
        a_BLHd, attended = inputs.text_attention.forward(q_BLHd, k_BKHd, v_BKHd, saves, NOTHING)
        (y_ND,), o = self.o.forward(a_BLHd.reshape(-1, x_BLD.shape[-1]), saves, reads, kept.of(HIDDEN))
        x_BLD = x_BLD + y_ND.view_as(x_BLD) if reads else None
        return x_BLD, [norm, q, norm_q, kv, norm_k, attended, o] if saves else None

    def _text(self, inputs: Inputs, saves: bool):
        (k_ND, v_ND), kv = self.kv.forward(inputs.text_ND, saves)
        k_ND, norm_k = self.pieces.rms_norm(k_ND, self.norm_k(k_ND)[0], self.eps_qk)
        return k_ND, v_ND, kv, norm_k

    def backward(self, saved, grad_BLD, inputs: Inputs, needs_x: bool):
        """See the module."""
        norm, q, norm_q, kv, norm_k, attended, o = saved
        saved.clear()
        grad_ND = self.o.backward(o, (grad_BLD.flatten(0, 1),), True)
        gq_BLHd, gk_BKHd, gv_BKHd = inputs.text_attention.backward(
            attended, grad_ND.view(inputs.samples, -1, self.heads, grad_ND.shape[-1] // self.heads))
        del attended
        gk_ND = self.pieces.rms_norm_gradient(gk_BKHd.reshape(norm_k.x_ND.shape), norm_k)
        self.kv.backward(kv, (gk_ND, gv_BKHd.reshape(gk_ND.shape)), False)
        gq_ND = self.pieces.rms_norm_gradient(gq_BLHd.reshape(grad_ND.shape), norm_q)
        grad_ND = self.q.backward(q, (gq_ND,), needs_x)
        return self.pieces.layer_norm_gradient(grad_ND, norm, grad_BLD) if needs_x else None


@dataclass(frozen=True, slots=True)
class FeedForward:
    """x + gate down(gelu(up(the modulated norm of x)))."""

    up: Linears
    down: Linears
    eps: float
    pieces: Pieces

    def forward(self, x_BLD, inputs: Inputs, saves: bool, reads: bool = True, kept: Kept = NOTHING):
        """See `SelfAttention.forward`."""
        by = inputs.modulations[1]
        n_ND, norm = self.pieces.modulated_norm(x_BLD, by, self.eps)
        (hidden,), up = self.up.forward(n_ND, saves, kept=kept.of(HIDDEN))
        del n_ND
        (y_ND,), down = self.down.forward(pieces.gelu(hidden), saves, reads, kept.of(HIDDEN))
        x_BLD = torch.addcmul(x_BLD, y_ND.view_as(x_BLD), by.gate) if reads else None
        return x_BLD, [norm, up, hidden, down] if saves else None

    def backward(self, saved, grad_BLD, inputs: Inputs, needs_x: bool):
        """See the module."""
        norm, up, hidden, down = saved
        saved.clear()
        by = inputs.modulations[1]
        grad = self.down.backward(down, ((grad_BLD * by.gate).flatten(0, 1),), True)
        grad = pieces.gelu_gradient(grad, hidden)
        del hidden
        grad_ND = self.up.backward(up, (grad,), needs_x)
        return self.pieces.modulated_norm_gradient(grad_ND, by, norm, grad_BLD) if needs_x else None
