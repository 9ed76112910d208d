"""Which kernel CUDA takes for attention and RMS norm, which a CPU build of torch does not know.

Torch decides both by the device inside C++, in code that a CPU build does not have. Here they are registered for the
dispatch keys of CUDA, so whoever calls them, by whatever name, gets what a card would run.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

_library: list[torch.library.Library] = []
"""Operators of a Library are gone when it is collected."""

_HALF = (torch.float16, torch.bfloat16)


def install() -> None:
    """Register them, once in a process."""
    ours = torch.library.Library("fake_cuda", "DEF")
    ours.define("rms_norm(Tensor x, int dims) -> (Tensor, Tensor)")
    ours.define("rms_norm_backward(Tensor grad, Tensor x, Tensor rstd) -> Tensor")
    ours.impl("rms_norm", lambda x, dims: (
        torch.empty_like(x), x.new_empty((*x.shape[:x.dim() - dims], *[1] * dims), dtype=torch.float32)), "Meta")
    ours.impl("rms_norm_backward", lambda grad, x, rstd: torch.empty_like(x), "Meta")
    library = torch.library.Library("aten", "IMPL")
    for key in ("AutogradCUDA", "CUDA"):
        library.impl("scaled_dot_product_attention", attention, key)
        library.impl("_fused_sdp_choice", choice, key)
        library.impl("rms_norm", rms_norm, key)
        library.impl("_fused_rms_norm", fused_rms_norm, key)
        library.impl("_fused_rms_norm_backward", fused_rms_norm_backward, key)
    _library.extend((ours, library))


def choice(q_BHLd, k_BHKd, v_BHKd, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """The number of the kernel: flash attention for 16 bits without a bias, else memory-efficient, else written out.

    As `sdpa_kernel` allows; cuDNN's kernel is not looked at, whose buffers are those of flash attention.
    """
    if torch._C._get_flash_sdp_enabled() and attn_mask is None and q_BHLd.dtype in _HALF:
        return SDPBackend.FLASH_ATTENTION.value
    efficient = torch._C._get_mem_efficient_sdp_enabled()
    return (SDPBackend.EFFICIENT_ATTENTION if efficient else SDPBackend.MATH).value


def attention(q_BHLd, k_BHKd, v_BHKd, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """By the kernel of `choice`."""
    chosen = choice(q_BHLd, k_BHKd, v_BHKd, attn_mask)
    if chosen == SDPBackend.FLASH_ATTENTION.value:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            q_BHLd, k_BHKd, v_BHKd, dropout_p, is_causal, scale=scale)[0]
    if chosen == SDPBackend.EFFICIENT_ATTENTION.value:
        bias = attn_mask
        if bias is not None:
            bias = bias.expand(*q_BHLd.shape[:3], k_BHKd.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            q_BHLd, k_BHKd, v_BHKd, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        q_BHLd, k_BHKd, v_BHKd, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]


def rms_norm(x, normalized_shape, weight=None, eps=None):
    """One kernel in each direction, which keeps the input and a number for each row (torch 2.9 and newer on CUDA)."""
    return _RMSNorm.apply(x, weight, len(normalized_shape))


def fused_rms_norm(x, normalized_shape, weight=None, eps=None):
    """The same by its own name, without a gradient."""
    return torch.ops.fake_cuda.rms_norm(x, len(normalized_shape))


def fused_rms_norm_backward(grad, x, normalized_shape, rstd, weight, output_mask):
    """The gradient of x alone."""
    if output_mask[1]:
        raise NotImplementedError("the gradient of a trained RMS norm is not counted here; WanTune trains none")
    return torch.ops.fake_cuda.rms_norm_backward(grad, x, rstd), None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, dims):
        y, rstd = torch.ops.fake_cuda.rms_norm(x, dims)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, rstd = ctx.saved_tensors
        if weight is not None and weight.requires_grad:
            raise NotImplementedError("the gradient of a trained RMS norm is not counted here; WanTune trains none")
        return torch.ops.fake_cuda.rms_norm_backward(grad, x, rstd), None, None
