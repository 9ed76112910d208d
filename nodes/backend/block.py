"""ComfyUI's WanAttentionBlock, computed by trainer/blocks/wan_branches.py over the very modules of the block.

Shape legend: B batch, L tokens, K text rows, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import comfy.ldm.wan.model as wan
import torch
from torch import nn

from ...trainer.adapter.adapters import Adapter
from ...trainer.blocks.image_attention import WithImage
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

OF_TEXT = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
"""Names of its Linears that read the text or an image, which carry no gradient."""

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name, among transformer_options, of the attention to use."""


def is_known(block: nn.Module) -> bool:
    """Whether a block is one that `WanBlock` computes."""
    return (type(block) is wan.WanAttentionBlock and type(block.self_attn) is wan.WanSelfAttention
            and type(block.cross_attn) in (wan.WanT2VCrossAttention, wan.WanI2VCrossAttention)
            and all(frozen_norm.is_affine_norm(norm) for norm in (
                block.norm3, block.self_attn.norm_q, block.self_attn.norm_k, block.cross_attn.norm_q,
                block.cross_attn.norm_k, *([block.cross_attn.norm_k_img] if sees_image(block) else [])))
            and not any(frozen_norm.is_affine_norm(norm) for norm in (block.norm1, block.norm2)))


def sees_image(block: nn.Module) -> bool:
    """Whether a block attends to an image's tokens beside the text's: Wan2.1 image-to-video."""
    return hasattr(block.cross_attn, "k_img")


def num_attentions(network: nn.Module, blocks: nn.ModuleList) -> int:
    """How often attention is called in the network's blocks, those of VACE included, which see no image."""
    return (3 if sees_image(blocks[0]) else 2) * len(blocks) + 2 * len(getattr(network, "vace_blocks", ()))


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
        self._block, self._number = block, int(name.rpartition(".")[2])
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
    def takes(x_BLD: torch.Tensor, e: torch.Tensor) -> bool:
        """Whether a modulation is (B, 6, D), or (B, F, 6, D): one for each of F equal parts of a sample's tokens."""
        return e.dim() in (3, 4) and e.shape[-2] == 6 and (e.dim() == 3 or x_BLD.shape[1] % e.shape[1] == 0)

    def __call__(
        self, x_BLD: torch.Tensor, e: torch.Tensor, freqs: torch.Tensor, context: torch.Tensor,
        context_img_len: int | None = None, transformer_options: Mapping | None = None
    ) -> torch.Tensor:
        """As WanAttentionBlock.forward.

        Args:
            e: the modulation by the noise level, as `takes` says.
            freqs: rotation matrices of the positions, see `Rotation`.
            context: text_BKD, with the tokens of an image before it where the block sees one.
            context_img_len: so many.
            transformer_options: holds the attention to use.
        """
        attention = text_attention = transformer_options[OVERRIDE]
        if sees_image(self._block):
            image_BKD, context = context[:, :context_img_len], context[:, context_img_len:]
            text_attention = WithImage(attention, lambda: self._image_keys(image_BKD))
        inputs = Inputs(
            modulations=self._modulations(self._number, e, x_BLD.dtype), samples=len(x_BLD),
            rotation=self._rotations(freqs), text_ND=context.flatten(0, 1), attention=attention,
            text_attention=text_attention)
        if e.dim() == 3 or e.shape[1] == 1:
            return self._lean(x_BLD.contiguous(), inputs)
        # a frame with a noise level of its own is as a sample to norms and gates
        by_level_BLD = x_BLD.contiguous().view(e.shape[0] * e.shape[1], -1, x_BLD.shape[-1])
        return self._lean(by_level_BLD, inputs).view(x_BLD.shape)

    def _image_keys(self, image_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As WanI2VCrossAttention.forward makes them, by the layers' own forwards: nothing here is trained."""
        layers = self._block.cross_attn
        with torch.no_grad():
            k_BKD, v_BKD = layers.norm_k_img(layers.k_img(image_BKD)), layers.v_img(image_BKD)
        return tuple(x_BKD.unflatten(-1, (self._block.num_heads, -1)) for x_BKD in (k_BKD, v_BKD))
