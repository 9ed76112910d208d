"""Weights as they lie on disk, in a diffusers folder or in a single file, and how they get into a model.

Sizes are read from the shapes and not from a folder's config.json, so that both forms are read in one way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from ..base import tensors
from ..base.errors import UserError

SAMPLES = 256
"""Values of each tensor that go into `fingerprint`: another fine-tune or precision changes every tensor."""


def read(
    path: Path, part: str, kept: Callable[[torch.Tensor], torch.Tensor] = lambda value: value
) -> dict[str, torch.Tensor]:
    """The tensors of a model by name.

    Args:
        path: a safetensors file; or a diffusers folder, or its subfolder `part`.
        part: such as "vae".
        kept: what becomes of each tensor; called file by file, so that not all are in memory as they are stored.

    Raises:
        UserError: there is no such file or folder, it holds no safetensors, or is damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for file in _files(path, part):
        try:
            found |= {name: kept(value) for name, value in tensors.read(file)[0].items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read as a safetensors file ({error}); download it again.") from None
    return found


def _files(path: Path, part: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no {path}; give a safetensors file, or a diffusers folder with the subfolder "
                        f"{part}.")
    folder = path / part if (path / part).is_dir() else path
    files = sorted(folder.glob("*.safetensors"))
    # beside the plain files there may be variants, such as model.fp16.safetensors
    plain = [file for file in files if file.name.count(".") == 1] or files
    shards = [file for file in plain if "-of-" in file.name]
    whole = [file for file in plain if file not in shards]
    if not files:
        raise UserError(f"{folder} holds no safetensors file; give a diffusers folder with the subfolder {part}, or a "
                        "single file.")
    if len(whole) > 1:
        raise UserError(f"{folder} holds several models, such as {whole[0].name} and {whole[1].name}; name one of "
                        "them.")
    return whole or shards


def fill(module: nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Put the weights into a module on the meta device; they are not copied.

    Raises:
        UserError: they are not those of the module.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        name = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise UserError(f"The file is not {what}: {name} has the shape {found.get(name, 'of nothing, it is missing')}, "
                        f"and {wanted.get(name, 'nothing')} is wanted; load {what}.")
    module.load_state_dict(dict(weights), strict=True, assign=True)
    module.requires_grad_(False).eval()


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A hash, 64 hex digits, of names, shapes, dtypes and evenly spread values of each tensor."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().reshape(-1)
        picked = flat[::max(1, flat.numel() // SAMPLES)][:SAMPLES].to("cpu", copy=True).contiguous()
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
