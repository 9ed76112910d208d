"""A checkpoint's files: the adapter and all that is needed to resume, as safetensors and JSON, without pickle.

    step_000400/adapter.safetensors   the adapter's weights to use
                state.safetensors     the tensors of the state, such as the optimizer's
                state.json            the rest of the state, and size and crc32 of both files
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..base.errors import UserError
from ..base.files import write_json

ADAPTER, STATE, INDEX = "adapter.safetensors", "state.safetensors", "state.json"

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
"""What reading a damaged checkpoint raises."""

_STEP = re.compile(r"step_(\d+)")

_TENSOR = "tensor"
_MAP = "map"
_TUPLE = "tuple"
_DTYPE = "dtype"
_FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run as it was after a step."""

    step: int
    adapter: dict[str, torch.Tensor]
    """The weights to use: the moving average where there is one."""
    state: dict[str, Any]
    """All that is needed to resume, such as the data position, the trained parameters and the optimizer's state."""


def step_of(path: Path) -> int | None:
    """The step whose checkpoint this folder is; None if it is another folder."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def place_of(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step_{step:06d}"


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write step_<step>/ into a run's folder, under a temporary name that is then changed, so that it is complete.

    Raises:
        UserError: the disk is full or cannot be written to; earlier checkpoints are as they were.
    """
    final = run / place_of(checkpoint.step)
    building = run / f"{final.name}.{uuid.uuid4().hex}.tmp"
    data, tensors = take_apart(checkpoint.state)
    try:
        building.mkdir()
        save_file(checkpoint.adapter, building / ADAPTER)
        save_file(tensors, building / STATE)
        for name in (ADAPTER, STATE):
            with (building / name).open("rb+") as file:
                os.fsync(file.fileno())  # a rename may reach the disk before the content does
        files = {name: _seal(building / name) for name in (ADAPTER, STATE)}
        index = {"step": checkpoint.step, "files": files, "state": data}
        write_json(building / INDEX, {"crc32": _crc(index), **index})
        if final.exists():
            shutil.rmtree(final)
        os.replace(building, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The checkpoint of step {checkpoint.step} cannot be written ({error}); free some space on the "
                        f"disk of {run} and queue again, the run goes on from its last checkpoint.") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """One checkpoint of a run's folder.

    Raises:
        UserError: a file of it is missing, truncated or foreign.
    """
    place = run / place_of(step)
    try:
        index = checked(place, step, (ADAPTER, STATE))
        state = put_together(index["state"], load_file(place / STATE))
        return Checkpoint(index["step"], load_file(place / ADAPTER), state)
    except DAMAGE as error:
        raise UserError(f"The checkpoint {place.name} cannot be used ({error}); it is passed over.") from None


def checked(place: Path, step: int, names: tuple[str, ...]) -> dict:
    """The content of a checkpoint's state.json, after a check of it and of these files. Raises one of DAMAGE."""
    index = json.loads((place / INDEX).read_text(encoding="utf-8"))
    if index.pop("crc32") != _crc(index) or index["step"] != step:
        raise ValueError(f"{INDEX} is damaged")
    for name in names:
        if _seal(place / name) != index["files"][name]:
            raise ValueError(f"{name} is damaged")
    return index


def take_apart(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Splits a state into JSON-serializable data, in which a tensor is {"tensor": its name}, and the tensors by name.

    The tensors are copies on the CPU. `put_together` restores mappings (also with integer keys), lists, tuples, text,
    numbers, dtypes, booleans and None as they were.

    Raises:
        TypeError: the state holds a value of another type.
    """
    tensors: dict[str, torch.Tensor] = {}

    def apart(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {_MAP: [[apart(key), apart(each)] for key, each in value.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [apart(each) for each in value]}
        if isinstance(value, list):
            return [apart(each) for each in value]
        if isinstance(value, torch.dtype):
            return {_DTYPE: str(value).removeprefix("torch.")}
        if isinstance(value, float) and not math.isfinite(value):
            return {_FLOAT: str(value)}  # JSON has neither inf nor nan
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    return apart(state), tensors


def put_together(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `take_apart`."""
    if isinstance(data, list):
        return [put_together(each, tensors) for each in data]
    if isinstance(data, dict):
        if _TENSOR in data:
            return tensors[data[_TENSOR]]
        if _DTYPE in data:
            return getattr(torch, data[_DTYPE])
        if _FLOAT in data:
            return float(data[_FLOAT])
        if _TUPLE in data:
            return tuple(put_together(each, tensors) for each in data[_TUPLE])
        return {put_together(key, tensors): put_together(each, tensors) for key, each in data[_MAP]}
    return data


def _seal(path: Path) -> list[int]:
    """Size in bytes and crc32 of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _crc(content: Mapping) -> int:
    return zlib.crc32(json.dumps(content).encode())
