"""Telling that there was too little memory from all other errors."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""The same class under its newer and its older name."""

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What other errors say: of CUDA's runtime, of a CPU's allocator under Linux and Windows, and of cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that there is too little memory."""
    if isinstance(error, OUT_OF_MEMORY):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def first_line(error: BaseException) -> str:
    """Of what an error says; torch adds advice for programmers."""
    return (str(error).splitlines() or [type(error).__name__])[0]
