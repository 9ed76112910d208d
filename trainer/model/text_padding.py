"""Wan's text padding, without its cost.

Wan attends to its text padded with zero rows to 512 tokens (WanModel.text_len, no mask), so a caption of 40
tokens is 472 rows that are all the same: the same key and value in every block, adapters included. n equal
keys weigh in a softmax like one key whose logit is raised by log n. So a few rows stand for all of them,
exactly, and the projections and the attention over the text shrink tenfold.
"""

from __future__ import annotations

import math
from functools import cache

import torch

MAX_ROWS = 4
"""Rows that stand for the padding. One is enough in fp32; in bf16 its log n is off by up to 1.6 %, each further
row stands for what the one before left over, and four are exact to a millionth."""


ROW_MULTIPLE = 8
"""Attention kernels on CUDA copy a bias whose rows are not so aligned."""


def pad(text_BLD: torch.Tensor, length: int) -> torch.Tensor:
    """The rows as the model sees them in sampling: zeros up to `length`; a longer text stays as it is."""
    missing = max(0, length - text_BLD.shape[1])
    return torch.nn.functional.pad(text_BLD, (0, 0, 0, missing))


def fold(
    text_BLD: torch.Tensor, dtype: torch.dtype, length: int, other_than: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and attention bias that do what `pad(text_BLD)` does without a bias.

    Args:
        text_BLD: embeddings, zero after each text's own end; already padded or not.
        dtype: of the bias, the dtype attention computes in.
        length: tokens to which the model pads (`ModelFamily.text_length`).
        other_than: a number of rows that must not come out, so that the text can be told from the video.

    Returns:
        text_BKD, the texts and a few zero rows, K a multiple of 8; and bias_BK to be added to the logits of
        each query, -inf for rows that stand for nothing.
    """
    lengths = _lengths(text_BLD)
    longest = max(lengths)
    logits = [_logits(length - own, dtype) for own in lengths]
    rows = -(-(longest + max(map(len, logits))) // ROW_MULTIPLE) * ROW_MULTIPLE
    if rows == other_than:
        rows += ROW_MULTIPLE
    bias_BK = torch.full((len(lengths), rows), -math.inf, dtype=dtype)
    for bias_K, own, padding in zip(bias_BK, lengths, logits, strict=True):
        bias_K[:own] = 0
        bias_K[longest:longest + len(padding)] = torch.tensor(padding, dtype=dtype)
    text_BKD = torch.nn.functional.pad(text_BLD[:, :longest], (0, 0, 0, rows - longest))
    return text_BKD, bias_BK.to(text_BLD.device)


def _lengths(text_BLD: torch.Tensor) -> list[int]:
    used_BL = (text_BLD != 0).any(-1).cpu()
    return [int(used_L.nonzero()[-1]) + 1 if used_L.any() else 0 for used_L in used_BL]


@cache
def _logits(count: int, dtype: torch.dtype) -> list[float]:
    """Logits, representable in dtype, whose exponentials sum to count to a millionth; none for 0 and less."""
    logits: list[float] = []
    remaining = float(count)
    while remaining > 1e-6 * count and len(logits) < MAX_ROWS:
        logit = torch.tensor(math.log(remaining), dtype=dtype)
        if math.exp(logit.item()) > remaining:  # never more than is there: a row cannot take mass away
            logit = torch.nextafter(logit, torch.tensor(-math.inf, dtype=dtype))
        logits.append(logit.item())
        remaining -= math.exp(logit.item())
    return logits
