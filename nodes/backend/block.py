"""ComfyUI's WanAttentionBlock, computed by trainer/blocks/wan_branches.py over the very modules of the block.

Shape legend: B batch, L tokens, K text rows, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import comfy.ldm.wan.model as wan
import torch
from torch import nn

from ...trainer.adapter.adapters import Adapter
from ...trainer.blocks.lean_block import Around, LeanBlock
from ...trainer.blocks.parking import Parking
from ...trainer.blocks.pieces import Pieces, Rotations
from ...trainer.blocks.wan_branches import CrossAttention, FeedForward, Inputs, SelfAttention
from ...trainer.memory.plan import Plan
from . import frozen_norm
from .modulations import Modulations

BRANCHES = ("self_attn", "cross_attn", "ffn")
"""Names, within a block, of what is added to the residual stream, in the order in which they are called."""

LAST = "ffn.2"
"""Name, within a block, of its last Linear: nothing but the residual stream reads its output."""

OF_TEXT = ("cross_attn.k", "cross_attn.v")
"""Names of its Linears that read the text, which carries no gradient."""

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name, among transformer_options, of the attention to use."""


def is_known(block: nn.Module) -> bool:
    """Whether a block is one that `WanBlock` computes."""
    return (type(block) is wan.WanAttentionBlock and type(block.self_attn) is wan.WanSelfAttention
            and type(block.cross_attn) is wan.WanT2VCrossAttention
            and all(frozen_norm.is_affine_norm(norm) for norm in (
                block.norm3, block.self_attn.norm_q, block.self_attn.norm_k, block.cross_attn.norm_q,
                block.cross_attn.norm_k))
            and not any(frozen_norm.is_affine_norm(norm) for norm in (block.norm1, block.norm2)))


class WanBlock:
    """Answers a block's calls as WanAttentionBlock.forward does.

    Args:
        name: of the block in the network, such as `blocks.3`.
        norms: what stands in for its affine norms, by their name in the network.
        rotations, modulations: shared by all blocks.
        pieces: compiled or not.
        plan, first, again, parking: as `LeanBlock` takes them.
    """

    def __init__(
        self, block: nn.Module, name: str, adapter: Adapter, norms: Mapping[str, frozen_norm.FrozenNorm],
        compute_dtype: torch.dtype, rotations: Rotations, modulations: Modulations, pieces: Pieces, plan: Plan | None,
        first: Around, again: Around, parking: Parking | None
    ) -> None:
        self._number = int(name.rpartition(".")[2])
        self._rotations, self._modulations = rotations, modulations

        def linears(*names: str):
            return adapter.linears_of([f"{name}.{each}" for each in names], compute_dtype)

        def norm(each: str) -> Callable:
            return norms[f"{name}.{each}"].tensors

        heads = block.num_heads
        branches = (
            SelfAttention(
                qkv=linears("self_attn.q", "self_attn.k", "self_attn.v"), o=linears("self_attn.o"),
                norms_qk=frozen_norm.BothNorms(norms[f"{name}.self_attn.norm_q"], norms[f"{name}.self_attn.norm_k"]),
                heads=heads, eps=block.norm1.eps, eps_qk=block.self_attn.norm_q.eps, pieces=pieces),
            CrossAttention(
                q=linears("cross_attn.q"), kv=linears("cross_attn.k", "cross_attn.v"), o=linears("cross_attn.o"),
                norm3=norm("norm3"), norm_q=norm("cross_attn.norm_q"), norm_k=norm("cross_attn.norm_k"), heads=heads,
                eps=block.norm3.eps, eps_qk=block.cross_attn.norm_q.eps, pieces=pieces),
            FeedForward(up=linears("ffn.0"), down=linears("ffn.2"), eps=block.norm2.eps, pieces=pieces),
        )
        trains = [adapter.is_within(f"{name}.{branch}") for branch in BRANCHES]
        self._lean = LeanBlock(branches, trains, plan, first, again, bool(adapter.config.dropout), parking)

    @staticmethod
    def takes(e: torch.Tensor) -> bool:
        """Whether a modulation is (B, 1, 6, D), one for each sample; there are models with one for each frame."""
        return e.shape[1:-1] == (1, 6)

    def __call__(
        self, x_BLD: torch.Tensor, e: torch.Tensor, freqs: torch.Tensor, context: torch.Tensor,
        context_img_len: int | None = None, transformer_options: Mapping | None = None
    ) -> torch.Tensor:
        """As WanAttentionBlock.forward.

        Args:
            e: (B, 1, 6, D), the modulation by the noise level.
            freqs: rotation matrices of the positions, see `Rotation`.
            context: text_BKD.
            context_img_len: of no effect in text-to-video.
            transformer_options: holds the attention to use.
        """
        return self._lean(x_BLD.contiguous(), Inputs(
            modulations=self._modulations(self._number, e, x_BLD.dtype), rotation=self._rotations(freqs),
            text_ND=context.flatten(0, 1), attention=transformer_options[OVERRIDE]))
