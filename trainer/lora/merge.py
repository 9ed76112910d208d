"""Several LoRAs as one, and a LoRA in the weights of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..base import tensors as tensor_files
from ..base.errors import UserError
from ..base.files import replacing
from ..base.refusals import in_a_sentence
from .convert import scaled_halves
from .keys import PREFIX, check_complete, modules_of, normalize
from .names import wan_name


@dataclass(frozen=True, slots=True)
class Merged:
    """Several LoRAs as one."""

    state: dict[str, torch.Tensor]
    """As `normalize` gives it, fp32, with alpha = rank."""
    rank: int
    """The highest of its modules."""
    kept: float
    """Share, 0..1, of the sum of squares of all updates that is left; 1 where nothing was cut."""


def merged(loras: Sequence[tuple[Mapping[str, torch.Tensor], float]], rank: int = 0) -> Merged:
    """One plain LoRA whose updates are the weighted sums of those of several.

    B_1 A_1 w_1 + B_2 A_2 w_2 is the product of B's side by side and A's one below the other: exact, of the rank of all
    together. Cut to a rank it is the best approximation (Eckart and Young), from a singular value decomposition
    between the two.

    Args:
        loras: (the LoRA of any trainer, its weight) each.
        rank: the most a module may have; 0 = what the sum needs.

    Raises:
        UserError: one is incomplete or no plain LoRA, two have a module of other shapes, or all weights are 0.
    """
    if rank < 0 or not any(weight for _, weight in loras):
        raise UserError(f"The rank is {rank} and the weights are {', '.join(f'{weight:g}' for _, weight in loras)}; "
                        "give a rank of 0 or more, and weights of which one is not 0.")
    halves: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for state, weight in loras:
        state = normalize(state)
        check_complete(state)
        for name, matrices in modules_of(state).items():
            a, b = scaled_halves(name, matrices)
            halves.setdefault(name, []).append((a.float(), b.float() * weight))
    found, total, left, most = {}, 0.0, 0.0, 0
    for name, parts in halves.items():
        shapes = {(len(b), a.shape[1]) for a, b in parts}
        if len(shapes) > 1:
            raise UserError(f"{name} has other shapes in the LoRAs ({' and '.join(map(_shape, sorted(shapes)))}); "
                            "merge LoRAs that were made for one model.")
        a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)
        a, b, squares = _cut(a, b, rank)
        total, left, most = total + float(squares.sum()), left + float(squares[:len(a)].sum()), max(most, len(a))
        found |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b,
                  f"{PREFIX}{name}.alpha": torch.tensor(float(len(a)))}
    return Merged(found, most, left / total if total else 1.0)


def merge_into(
    base: Path, lora: Mapping[str, torch.Tensor], strength: float, path: Path, more: Mapping[str, str] | None = None
) -> int:
    """Write a model with a LoRA in its weights: W + strength alpha / rank B A, rounded to the dtype of W.

    Args:
        base: the model as one safetensors file, under ComfyUI's or diffusers' names; all of it is read into memory.
        more: goes into the header of the file.

    Returns:
        How many modules were changed: all that the LoRA has.

    Raises:
        UserError: `base` cannot be read, stores those weights in 8 bits or less, or lacks one of the LoRA's modules;
            or the LoRA is no plain one, or the file cannot be written.
    """
    lora = normalize(lora)
    check_complete(lora)
    try:
        tensors, metadata = tensor_files.read(base)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{base.name} cannot be read as safetensors ({error}); give the model as one file.") from None
    keys = {wan_name(key.removesuffix(".weight")): key for key in tensors if key.endswith(".weight")}
    modules = modules_of(lora)
    for name, matrices in modules.items():
        a, b = scaled_halves(name, matrices)
        key = keys.get(name)
        weight = tensors[key] if key else None
        if weight is None or (len(b), a.shape[1]) != (len(weight), weight[0].numel()):
            raise UserError(f"{base.name} has no {name} of {_shape((len(b), a.shape[1]))}; give the model that the "
                            "LoRA was made for.")
        if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            raise UserError(f"{base.name} stores {name} as {str(weight.dtype).removeprefix('torch.')}, to which too "
                            "little of a LoRA could be added; merge into the fp16, bf16 or fp32 file.")
        update = (b.float() @ a.float()).view(weight.shape)
        tensors[key] = torch.add(weight.float(), update, alpha=strength).to(weight.dtype)
    with in_a_sentence(f"{path.name} cannot be written", path.parent, "merge again"), replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata, **(more or {})})
    return len(modules)


def _cut(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A (rank, in), B (out, rank) of the best approximation of B A, and the squares of all its singular values, or
    their sum where nothing is cut."""
    if not rank or len(a) <= rank:
        return a, b, ((b.T @ b) * (a @ a.T)).sum()[None]
    left, in_left = torch.linalg.qr(b)
    right, in_right = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(in_left @ in_right.T)
    root = values[:rank].sqrt()
    return root[:, None] * (v[:rank] @ right.T), left @ u[:, :rank] * root, values.square()


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
