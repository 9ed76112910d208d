"""The small world's UMT5 encoder in plain torch, for training: only the rows of tokens, without ComfyUI's 512."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

ROWS = 512
"""Rows of Wan's text condition: the tokens' and zeros."""
BUCKETS, FARTHEST = 32, 128
"""Of the relative attention bias (Raffel et al. 2020)."""
EPS = 1e-6


class TextEncoder:
    """The one layer of tests/world/umt5.safetensors; dim 4096, one head."""

    def __init__(self, path: Path):
        import sentencepiece

        tensors = load_file(path)
        self.tokenizer = sentencepiece.SentencePieceProcessor(
            model_proto=tensors.pop("spiece_model").numpy().tobytes(), add_eos=True
        )
        self.weights = {name.removeprefix("encoder.block.0.layer."): tensor.float() for name, tensor in tensors.items()}
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """text_BLD, and the rows that each caption has; L is that of the longest, the rest are zeros."""
        rows = [self.tokenizer.encode(caption) for caption in captions]
        length_B = torch.tensor([len(row) for row in rows])
        token_BL = torch.zeros(len(rows), int(length_B.max()), dtype=torch.long)
        for line, row in zip(token_BL, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        return self._encode(token_BL, length_B), length_B

    @torch.no_grad()
    def _encode(self, token_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        used_BL = torch.arange(token_BL.shape[1]) < length_B[:, None]
        x_BLD = weights["shared.weight"][token_BL]
        y_BLD = _norm(x_BLD, weights["0.layer_norm.weight"])
        query, key, value = (F.linear(y_BLD, weights[f"0.SelfAttention.{name}.weight"]) for name in "qkv")
        bias_LL = weights["0.SelfAttention.relative_attention_bias.weight"][_buckets(token_BL.shape[1]), 0]
        bias_BLL = bias_LL.masked_fill(~used_BL[:, None], -torch.inf)
        x_BLD = x_BLD + F.linear(
            F.scaled_dot_product_attention(query, key, value, attn_mask=bias_BLL, scale=1.0),
            weights["0.SelfAttention.o.weight"],
        )
        y_BLD = _norm(x_BLD, weights["1.layer_norm.weight"])
        gate = F.gelu(F.linear(y_BLD, weights["1.DenseReluDense.wi_0.weight"]), approximate="tanh")
        hidden = gate * F.linear(y_BLD, weights["1.DenseReluDense.wi_1.weight"])
        x_BLD = x_BLD + F.linear(hidden, weights["1.DenseReluDense.wo.weight"])
        return _norm(x_BLD, weights["encoder.final_layer_norm.weight"]) * used_BL[..., None]


def _norm(x_BLD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    return weight_D * (x_BLD * torch.rsqrt(x_BLD.square().mean(-1, keepdim=True) + EPS))


def _buckets(length: int) -> torch.Tensor:
    """Of the distance from each query to each key: exact when it is short, then ever coarser."""
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = exact + (
        torch.log(distance.abs().clamp(min=1) / exact) / math.log(FARTHEST / exact) * (half - exact)
    ).long().clamp(max=half - exact - 1)
    return half * (distance > 0) + torch.where(distance.abs() < exact, distance.abs(), far)
