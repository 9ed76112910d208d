"""Reads safetensors files and leaves none open or mapped, since Windows neither replaces nor deletes such files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

PORTION = 64 * 2**20
"""Bytes that are copied before the file is opened anew: what was read of a mapped file counts as memory until then."""


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
