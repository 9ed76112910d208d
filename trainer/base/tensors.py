"""Tensors read from files, and what stands for one in a hash.

No safetensors file is left open or mapped, since Windows neither replaces nor deletes such files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

PORTION = 64 * 2**20
"""Bytes that are copied before the file is opened anew: what was read of a mapped file counts as memory until then."""

SAMPLES = 256
"""Values read from each tensor. A fine-tune or another precision changes every tensor, so few are enough."""


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file by name, in memory of their own, and its metadata.

    Raises:
        OSError, SafetensorError: the file is missing, unreadable or damaged.
    """
    with path.open("rb"):  # raises the system's error; safetensors calls any file that it cannot open missing
        pass
    tensors: dict[str, torch.Tensor] = {}
    names: list[str] | None = None
    while names is None or len(tensors) < len(names):
        with safe_open(path, "pt") as file:
            names = list(file.keys()) if names is None else names
            metadata, copied = file.metadata() or {}, 0
            while copied < PORTION and len(tensors) < len(names):
                name = names[len(tensors)]
                tensors[name] = file.get_tensor(name).clone()
                copied += tensors[name].nbytes
    return tensors, metadata


def sampled(value: torch.Tensor, dtype: torch.dtype | None = None) -> bytes:
    """The bytes of evenly spread values, in their own dtype or cast to another; of ComfyUI's quantised, as stored."""
    with torch.no_grad():
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            value = getattr(value, "_qdata", value).as_subclass(torch.Tensor)
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        picked = flat[::step][:SAMPLES].to("cpu", dtype or flat.dtype, copy=True).contiguous()
        return picked.view(torch.uint8).numpy().tobytes()
