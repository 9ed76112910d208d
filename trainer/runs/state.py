"""A checkpoint's files: the adapter and all that is needed to resume, as safetensors and JSON, without pickle.

    step_000400/adapter.safetensors   the adapter's weights to use
                state.safetensors     the tensors of the state, such as the optimizer's
                state.json            the rest of the state, and size and crc32 of both files
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..base import files, tensors
from ..base.errors import UserError
from ..base.refusals import in_a_sentence

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
    building = files.beside(final)
    data, by_name = take_apart(checkpoint.state)
    what = f"The checkpoint of step {checkpoint.step} cannot be written"
    try:
        with in_a_sentence(what, run, "queue again, and the run goes on from its last checkpoint"):
            building.mkdir()
            save_file(checkpoint.adapter, building / ADAPTER)
            save_file(by_name, building / STATE)
            for name in (ADAPTER, STATE):
                files.sync(building / name)
            seals = {name: _seal(building / name) for name in (ADAPTER, STATE)}
            index = {"step": checkpoint.step, "files": seals, "state": data}
            files.write_json(building / INDEX, {"crc32": _crc(index), **index})
            _put_in_place(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def _put_in_place(building: Path, final: Path) -> None:
    """Rename a folder, in place of one that is there; that one stays if this fails. Raises OSError."""
    if not final.exists():
        files.replace(building, final)
        return
    former = files.beside(final)
    files.replace(final, former)
    try:
        files.replace(building, final)
    except OSError:
        files.replace(former, final)
        raise
    shutil.rmtree(former, ignore_errors=True)


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """One checkpoint of a run's folder.

    Raises:
        UserError: a file of it is missing, truncated or foreign.
    """
    place = run / place_of(step)
    try:
        index = checked(place, step, (ADAPTER, STATE))
        state = put_together(index["state"], tensors.read(place / STATE)[0])
        return Checkpoint(index["step"], tensors.read(place / ADAPTER)[0], state)
    except DAMAGE as error:
        raise UserError(f"The checkpoint {place.name} cannot be used ({error}); it is passed over.") from None


def checked(place: Path, step: int, names: tuple[str, ...]) -> dict:
    """The content of a checkpoint's state.json, after a check of it and of these files. Raises one of DAMAGE."""
    index = json.loads(files.read_bytes(place / INDEX))
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
    found: dict[str, torch.Tensor] = {}

    def apart(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"{len(found):06d}"
            found[name] = value.detach().to("cpu", copy=True).contiguous()
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

    return apart(state), found


def put_together(data: Any, by_name: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `take_apart`."""
    if isinstance(data, list):
        return [put_together(each, by_name) for each in data]
    if isinstance(data, dict):
        if _TENSOR in data:
            return by_name[data[_TENSOR]]
        if _DTYPE in data:
            return getattr(torch, data[_DTYPE])
        if _FLOAT in data:
            return float(data[_FLOAT])
        if _TUPLE in data:
            return tuple(put_together(each, by_name) for each in data[_TUPLE])
        return {put_together(key, by_name): put_together(each, by_name) for key, each in data[_MAP]}
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
