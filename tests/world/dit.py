"""Wan2.1's text-to-video transformer in plain torch, for training the small world on a CPU.

Names, shapes and results are those of ComfyUI's WanModel (a test compares them). It differs in what it is given:
the zeros behind a text are one row with the weight of all of them, since attention to equal rows is the same.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .text import ROWS

CHANNELS, PATCH = 16, 2
HEAD_DIM = 128
FREQUENCIES, TEXT_DIM = 256, 4096
THETA = 10000.0
EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps=EPS), nn.RMSNorm(dim, eps=EPS)

    def forward(self, x_BLD, source_BLD, rotation_LC=None, bias_B11L=None):
        query, key = _heads(self.norm_q(self.q(x_BLD))), _heads(self.norm_k(self.k(source_BLD)))
        if rotation_LC is not None:
            query, key = _rotated(query, rotation_LC), _rotated(key, rotation_LC)
        out = F.scaled_dot_product_attention(query, key, _heads(self.v(source_BLD)), attn_mask=bias_B11L)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(dim), Attention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim**-0.5)

    def forward(self, x_BLD, time_B6D, text_BLD, rotation_LC, bias_B11L):
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (self.modulation + time_B6D).chunk(6, dim=1)
        y_BLD = _norm(x_BLD) * (1 + scale) + shift
        x_BLD = x_BLD + self.self_attn(y_BLD, y_BLD, rotation_LC) * gate
        x_BLD = x_BLD + self.cross_attn(self.norm3(x_BLD), text_BLD, bias_B11L=bias_B11L)
        return x_BLD + self.ffn(_norm(x_BLD) * (1 + scale_ffn) + shift_ffn) * gate_ffn


class Head(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.head = nn.Linear(dim, CHANNELS * PATCH**2)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim**-0.5)

    def forward(self, x_BLD, time_B1D):
        shift, scale = (self.modulation + time_B1D).chunk(2, dim=1)
        return self.head(_norm(x_BLD) * (1 + scale) + shift)


class Transformer(nn.Module):
    def __init__(self, dim: int = 256, ffn_dim: int = 1024, layers: int = 4):
        super().__init__()
        self.patch_embedding = nn.Conv3d(CHANNELS, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(TEXT_DIM, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim) for _ in range(layers))
        self.head = Head(dim)

    def forward(self, latent_BCFHW, sigma_B, text_BLD, length_B):
        """Velocity of a latent at noise sigma (0 to 1) with texts of `length_B` rows, as TextEncoder gives them."""
        batch, channels, frames, height, width = latent_BCFHW.shape
        grid = (frames, height // PATCH, width // PATCH)
        patches = latent_BCFHW.reshape(batch, channels, frames, grid[1], PATCH, grid[2], PATCH)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        x_BLD = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        time_BD = self.time_embedding(_sinusoids(1000 * sigma_B))
        time_B6D = self.time_projection(time_BD).unflatten(1, (6, -1))
        text_BLD = self.text_embedding(F.pad(text_BLD, (0, 0, 0, 1)))
        bias_B11L = _text_bias(length_B, text_BLD.shape[1])
        rotation_LC = _rotation(grid)
        for block in self.blocks:
            x_BLD = block(x_BLD, time_B6D, text_BLD, rotation_LC, bias_B11L)
        out = self.head(x_BLD, time_BD[:, None]).reshape(batch, *grid, PATCH, PATCH, CHANNELS)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(latent_BCFHW.shape)


def _norm(x_BLD):
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=EPS)


def _heads(x_BLD):
    return x_BLD.unflatten(2, (-1, HEAD_DIM)).transpose(1, 2)


def _text_bias(length_B, rows):
    """Hides rows that a text does not have; the last row stands for all zeros up to ROWS."""
    hidden_BL = torch.arange(rows) >= length_B[:, None]
    bias_BL = torch.zeros(len(length_B), rows).masked_fill(hidden_BL, -torch.inf)
    bias_BL[:, -1] = torch.log(ROWS - length_B.float())
    return bias_BL[:, None, None]


def _sinusoids(time_B):
    half = FREQUENCIES // 2
    angle = time_B[:, None] * 10000 ** -(torch.arange(half) / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _rotation(grid):
    """Complex rotation (tokens, HEAD_DIM / 2) of frame, row and column (Su et al. 2021), in Wan's split."""
    side = 2 * (HEAD_DIM // 6)
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij"), dim=-1).reshape(-1, 3)
    angles = [
        place[:, None] * THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        for place, dim in zip(places.T, (HEAD_DIM - 2 * side, side, side), strict=True)
    ]
    angle = torch.cat(angles, dim=1).float()
    return torch.polar(torch.ones_like(angle), angle)


def _rotated(x_BHLC, rotation_LC):
    pairs = torch.view_as_complex(x_BHLC.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation_LC).flatten(-2)


def size_of(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """The arguments of the Transformer that has these tensors."""
    ffn_dim, dim = tensors["blocks.0.ffn.0.weight"].shape
    return {"dim": dim, "ffn_dim": ffn_dim, "layers": 1 + max(int(n.split(".")[1]) for n in tensors if "blocks" in n)}
