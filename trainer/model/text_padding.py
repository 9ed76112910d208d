"""Wan's text padding, without its cost.

Wan attends to its text padded with zero rows to 512 tokens (WanModel.text_len, no mask), so a caption of 40
tokens is followed by 472 equal rows, with the same key and value in every block, adapters included. In a softmax
n equal keys have the weight of one key whose logit is raised by log n. So a few rows with an attention bias replace
all of them without changing the result, and the projections and the attention over the text shrink tenfold.
"""

from __future__ import annotations

import math
from functools import cache

import torch

MAX_ROWS = 4
"""Rows that replace the padding. One is enough in fp32; in bf16 the rounding of log n changes its weight by up to
1.6 %, each further row makes up for what the rows before it leave, and with four the sum is exact to a millionth."""

ROW_MULTIPLE = 8
"""The number of rows is a multiple of this: attention kernels on CUDA copy a bias whose rows are not so aligned."""

FEW = (32, 64, 96, 128, 192, 256, 384, 512)
"""The numbers of rows on a device that chooses, builds or records kernels for each number anew; above them the
multiples of FURTHER. On a CPU, where each row costs as much as the next, there are as few rows as possible instead."""

FURTHER = 128


def pad(text_BLD: torch.Tensor, length: int) -> torch.Tensor:
    """The text as the model sees it in sampling: zero rows up to `length`; a longer text stays as it is."""
    missing = max(0, length - text_BLD.shape[1])
    return torch.nn.functional.pad(text_BLD, (0, 0, 0, missing))


def fold(
    text_BLD: torch.Tensor, dtype: torch.dtype, length: int, other_than: int = 0, numbers_are_few: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """A shorter text and an attention bias that give the result of `pad(text_BLD, length)` without a bias.

    Args:
        text_BLD: embeddings on the CPU, zero after each text's own end; already padded or not.
        dtype: of the bias, the dtype attention computes in.
        length: tokens to which the model pads (`ModelFamily.text_length`).
        other_than: a number of rows that the result must not have: the number of video tokens, so that attention over
            the text can be told from attention over the video by the number of keys.
        numbers_are_few: the number of rows is one of FEW.

    Returns:
        text_BKD, the texts and zero rows, K a multiple of ROW_MULTIPLE; and bias_BK to be added to the logits of each
        query, -inf for rows without effect.
    """
    lengths = _lengths(text_BLD)
    longest = max(lengths)
    logits = [_logits(length - own, dtype) for own in lengths]
    rows = _rows(longest + max(map(len, logits)), other_than, numbers_are_few)
    bias_BK = torch.full((len(lengths), rows), -math.inf, dtype=dtype)
    for bias_K, own, padding in zip(bias_BK, lengths, logits, strict=True):
        bias_K[:own] = 0
        bias_K[longest:longest + len(padding)] = torch.tensor(padding, dtype=dtype)
    text_BKD = torch.nn.functional.pad(text_BLD[:, :longest], (0, 0, 0, rows - longest))
    return text_BKD, bias_BK


def most_rows(longest: int, length: int, other_than: int = 0, numbers_are_few: bool = False) -> int:
    """Rows that `fold` gives at most for texts of up to so many tokens; the other arguments are as it takes them."""
    return _rows(longest + (MAX_ROWS if longest < length else 0), other_than, numbers_are_few)


def are_numbers_few(device: torch.device) -> bool:
    """Whether the numbers of rows on a device are few."""
    return device.type != "cpu"


def _rows(count: int, other_than: int, numbers_are_few: bool) -> int:
    if numbers_are_few and count <= FEW[-1]:
        rows = next(rows for rows in FEW if rows >= count)
    else:
        multiple = FURTHER if numbers_are_few else ROW_MULTIPLE
        rows = -(-count // multiple) * multiple
    return rows if rows != other_than else _rows(rows + 1, other_than, numbers_are_few)


def _lengths(text_BLD: torch.Tensor) -> list[int]:
    used_BL = (text_BLD != 0).any(-1)
    return [int(used_L.nonzero()[-1]) + 1 if used_L.any() else 0 for used_L in used_BL]


@cache
def _logits(count: int, dtype: torch.dtype) -> list[float]:
    """Logits, representable in dtype, whose exponentials sum to count within a millionth; none for count <= 0."""
    logits: list[float] = []
    remaining = float(count)
    while remaining > 1e-6 * count and len(logits) < MAX_ROWS:
        logit = torch.tensor(math.log(remaining), dtype=dtype)
        if math.exp(logit.item()) > remaining:  # round down: a later row can only add
            logit = torch.nextafter(logit, torch.tensor(-math.inf, dtype=dtype))
        logits.append(logit.item())
        remaining -= math.exp(logit.item())
    return logits
