"""A block of Wan as training computes it: the same function as ComfyUI's, of fewer kernels.

Linears with the same input are computed together, scale and shift are part of the norm, and each branch can be computed
again by itself. It reads the very modules of the block; `differs` compares it with ComfyUI's own forward, and where
they do not agree ComfyUI's is trained through.

Shape legend: B batch, L tokens, K text rows, D width of the model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import comfy.ldm.wan.model as wan
import comfy.model_management
import torch
from torch import nn

from ...trainer.model.adapters import Adapter
from ...trainer.model.pieces import Rotation, Rotations, modulated_norm

BRANCHES = ("self_attn", "cross_attn", "ffn")
"""Names, within a block, of what is added to the residual stream, in the order in which they are called."""

LAST = {"self_attn": "self_attn.o", "cross_attn": "cross_attn.o", "ffn": "ffn.2"}
"""The last Linear of each branch: nothing but the residual stream reads its output."""

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name, among transformer_options, of the attention to use."""

Wrap = Callable[[str, Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]


class LeanBlock:
    """Computes a WanAttentionBlock.

    Args:
        name: of the block in the network, such as `blocks.3`.
        norms: what stands in for its affine norms, by their name within the block.
        rotations: shared by all blocks.
        wrap: puts gradient checkpointing around a branch, given by its name; the identity where there is none.
    """

    def __init__(
        self, block: nn.Module, name: str, adapter: Adapter, norms: Mapping[str, Callable], compute_dtype: torch.dtype,
        rotations: Rotations, wrap: Wrap
    ) -> None:
        self._block = block
        self._rotations = rotations
        self._heads = block.num_heads
        self._norm = {key: norms.get(key, nn.Identity()) for key in (
            "norm3", *(f"{branch}.norm_{which}" for branch in BRANCHES[:2] for which in "qk"))}

        def together(*linears: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
            return adapter.forward_of_all([f"{name}.{linear}" for linear in linears], compute_dtype)

        self._qkv = together("self_attn.q", "self_attn.k", "self_attn.v")
        self._q, self._kv = together("cross_attn.q"), together("cross_attn.k", "cross_attn.v")
        self._self_o, self._cross_o = together("self_attn.o"), together("cross_attn.o")
        self._up, self._down = together("ffn.0"), together("ffn.2")
        self._self_attention = wrap("self_attn", self._self_attention_part)
        self._cross_attention = wrap("cross_attn", self._cross_attention_part)
        self._feed_forward = wrap("ffn", self._feed_forward_part)

    @staticmethod
    def takes(block: nn.Module) -> bool:
        """Whether this is a block as it is computed here."""
        return (type(block) is wan.WanAttentionBlock and type(block.self_attn) is wan.WanSelfAttention
                and type(block.cross_attn) is wan.WanT2VCrossAttention)

    @staticmethod
    def takes_modulation(e: torch.Tensor) -> bool:
        """Whether it is (B, 1, 6, D), one for each sample; there are models with one for each frame."""
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
        attention = transformer_options[OVERRIDE]
        modulation = comfy.model_management.cast_to(self._block.modulation, dtype=x_BLD.dtype, device=x_BLD.device)
        e_B6D = modulation + e.squeeze(1)
        shift_1, _, gate_1, shift_2, _, gate_2 = e_B6D.chunk(6, dim=1)
        scale_1, scale_2 = (e_B6D[:, 1::3] + 1).chunk(2, dim=1)  # the second and the fifth
        x_BLD = x_BLD.contiguous()
        y_BLD = self._self_attention(x_BLD, scale_1, shift_1, self._rotations(freqs), attention)
        x_BLD = torch.addcmul(x_BLD, y_BLD, gate_1)
        x_BLD = x_BLD + self._cross_attention(x_BLD, context, attention)
        y_BLD = self._feed_forward(x_BLD, scale_2, shift_2)
        return torch.addcmul(x_BLD, y_BLD, gate_2)

    def _self_attention_part(self, x_BLD, scale_B1D, shift_B1D, rotation: Rotation, attention: Callable):
        q_BLD, k_BLD, v_BLD = self._qkv(modulated_norm(x_BLD, scale_B1D, shift_B1D, self._block.norm1.eps))
        q_BLD = self._turned(rotation, self._norm["self_attn.norm_q"](q_BLD))
        k_BLD = self._turned(rotation, self._norm["self_attn.norm_k"](k_BLD))
        return self._self_o(attention(None, q_BLD, k_BLD, v_BLD, heads=self._heads))[0]

    def _cross_attention_part(self, x_BLD, text_BKD, attention: Callable):
        q_BLD = self._norm["cross_attn.norm_q"](self._q(self._norm["norm3"](x_BLD))[0])
        k_BKD, v_BKD = self._kv(text_BKD)
        k_BKD = self._norm["cross_attn.norm_k"](k_BKD)
        return self._cross_o(attention(None, q_BLD, k_BKD, v_BKD, heads=self._heads))[0]

    def _feed_forward_part(self, x_BLD, scale_B1D, shift_B1D):
        (hidden,) = self._up(modulated_norm(x_BLD, scale_B1D, shift_B1D, self._block.norm2.eps))
        return self._down(nn.functional.gelu(hidden, approximate="tanh"))[0]

    def _turned(self, rotation: Rotation, x_BLD: torch.Tensor) -> torch.Tensor:
        return rotation(x_BLD.unflatten(-1, (self._heads, -1))).flatten(-2)
