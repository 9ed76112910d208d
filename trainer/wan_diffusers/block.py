"""diffusers' WanTransformerBlock, computed by trainer/blocks/wan_branches.py over the very modules of the block.

So a step has the kernels, the memory and the numbers that it has in ComfyUI (nodes/backend/block.py).

Shape legend: B batch, L tokens, K rows of the text and of an image before it, D width of the model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..adapter.adapters import Adapter
from ..blocks.attention import BiasedAttention
from ..blocks.image_attention import WithImage
from ..blocks.lean_block import LeanBlock
from ..blocks.parking import Parking
from ..blocks.pieces import Modulation, Pieces, Rotation, Shared
from ..blocks.wan_branches import CrossAttention, FeedForward, Inputs, SelfAttention
from ..memory.plan import Plan
from .frozen import BothNorms, FrozenLinear, FrozenNorm

BRANCHES = ("self_attn", "cross_attn", "ffn")
"""Names, within a block, of what is added to the residual stream, in their order."""


def rotation_of(cos_1L1D: torch.Tensor, sin_1L1D: torch.Tensor) -> Rotation:
    """Of diffusers' cosines and sines, in which each stands twice, for both numbers of a pair."""
    cos, sin = cos_1L1D[..., 0::2].float(), sin_1L1D[..., 1::2].float()
    return Rotation(torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)))


@dataclass(kw_only=True, slots=True)
class Together:
    """What all blocks of a network share."""

    adapter: Adapter
    compute_dtype: torch.dtype
    pieces: Pieces
    parking: Parking | None
    rotations: Shared[Rotation]
    attention: BiasedAttention | None = None
    """Of the step that is computed."""


class WanBlock:
    """Answers a block's calls as WanTransformerBlock.forward does.

    Args:
        name: of the block here, such as `blocks.3`.
        plan: None where everything is kept.
    """

    def __init__(self, block: nn.Module, name: str, together: Together, plan: Plan | None) -> None:
        self._block, self._name, self._together = block, name, together
        self._is_whole = plan is None
        self._adapter = adapter = together.adapter

        def linears(*names: str):
            return adapter.linears_of([f"{name}.{each}" for each in names], together.compute_dtype)

        own, cross, pieces = block.attn1, block.attn2, together.pieces
        branches = (
            SelfAttention(
                qkv=linears("self_attn.q", "self_attn.k", "self_attn.v"), o=linears("self_attn.o"),
                norms_qk=BothNorms(own.norm_q, own.norm_k), heads=own.heads, eps=block.norm1.eps,
                eps_qk=own.norm_q.eps, pieces=pieces),
            CrossAttention(
                q=linears("cross_attn.q"), kv=linears("cross_attn.k", "cross_attn.v"), o=linears("cross_attn.o"),
                norm3=FrozenNorm(block.norm2), norm_q=FrozenNorm(cross.norm_q), norm_k=FrozenNorm(cross.norm_k),
                heads=cross.heads, eps=block.norm2.eps, eps_qk=cross.norm_q.eps, pieces=pieces),
            FeedForward(up=linears("ffn.0"), down=linears("ffn.2"), eps=block.norm3.eps, pieces=pieces),
        )
        trains = [adapter.is_within(f"{name}.{branch}") for branch in BRANCHES]
        self._lean = LeanBlock(branches, trains, plan, self._first, self._again, bool(adapter.config.dropout),
                               together.parking)

    def _first(self, _branch: int | None) -> AbstractContextManager[None]:
        return self._adapter.cast(self._name, self._together.compute_dtype, self._is_whole)

    def _again(self, branch: int | None) -> AbstractContextManager[None]:
        return nullcontext() if self._is_whole else self._first(branch)

    def __call__(
        self, x_BLD: torch.Tensor, context_BKD: torch.Tensor, temb: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """As WanTransformerBlock.forward; x carries a gradient, nothing else does.

        Args:
            temb: the modulation by the noise level, (B, 6, D), or (B, F, 6, D): one for each of F equal parts of a
                sample's tokens.
            rotary: cosines and sines of the positions.
        """
        attention = text_attention = self._together.attention
        if self._block.attn2.add_k_proj is not None:
            rows = context_BKD.shape[1] - attention.text_rows
            image_BKD, context_BKD = context_BKD[:, :rows], context_BKD[:, rows:]
            text_attention = WithImage(attention, lambda: self._image_keys(image_BKD))
        inputs = Inputs(
            modulations=self._modulations(temb, x_BLD.dtype), samples=len(x_BLD),
            rotation=self._together.rotations(*rotary), text_ND=context_BKD.flatten(0, 1), attention=attention,
            text_attention=text_attention)
        if temb.dim() == 3:
            return self._lean(x_BLD.contiguous(), inputs)
        # a frame with a noise level of its own is as a sample to norms and gates
        by_level_BLD = x_BLD.contiguous().view(temb.shape[0] * temb.shape[1], -1, x_BLD.shape[-1])
        return self._lean(by_level_BLD, inputs).view(x_BLD.shape)

    def _modulations(self, temb: torch.Tensor, dtype: torch.dtype) -> tuple[Modulation, Modulation]:
        """Of self-attention and of the feed-forward branch."""
        all_B6D = self._block.scale_shift_table.detach().to(dtype) + temb.to(dtype).flatten(0, -3)
        all_B6D[:, 1::3] += 1  # the scales
        each = all_B6D.split(1, dim=1)
        return Modulation(*each[:3]), Modulation(*each[3:])

    def _image_keys(self, image_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing here is trained."""
        layers = self._block.attn2
        with torch.no_grad():
            k_BKD = layers.norm_added_k(FrozenLinear(layers.add_k_proj).output(image_BKD))
            v_BKD = FrozenLinear(layers.add_v_proj).output(image_BKD)
        return tuple(x_BKD.unflatten(-1, (layers.heads, -1)) for x_BKD in (k_BKD, v_BKD))
