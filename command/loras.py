"""`wantune lora`: inspect, convert and merge LoRA files."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from ..trainer.base.errors import UserError
from ..trainer.lora import convert, keys, made_for, merge
from ..trainer.lora import file as lora_file
from ..trainer.lora.file import LoraStateDict

_KINDS = {"lokr": "LoKr", "hada": "LoHa", "dora": "DoRA", "lora": "LoRA", "diff": "changes of whole weights",
          "oft": "OFT"}
"""What a module is by how the names of its matrices begin, most telling first."""

_SHOWN = ("wantune.trigger_word", "modelspec.trigger_phrase", "ss_output_name", "ss_learning_rate",
          "ss_num_train_images", "ss_num_epochs", "wantune.expert", "wantune.data_digest")
"""Entries of a header that are shown where they say something."""


def run(arguments: argparse.Namespace) -> int:
    """One of its actions."""
    return {"inspect": _inspect, "convert": _convert, "merge": _merge}[arguments.action](arguments)


def told(lora: LoraStateDict) -> dict[str, object]:
    """What a LoRA file holds, by the words under which it is shown: plain data."""
    state = keys.normalize(lora)
    modules = keys.modules_of(state)
    header = lora.metadata
    steps = header.get("wantune.step") or header.get("ss_steps")
    found = {
        "file": lora.file,
        "made for": header.get("wantune.base_model") or made_for.describe(modules),
        "modules": len(modules),
        "kind": _most(map(_kind, modules.values())),
        "rank": _most(map(_rank, modules.values())),
        "alpha": _most(f"{float(each['alpha']):g}" for each in modules.values() if each.get("alpha") is not None
                       and each["alpha"].numel() == 1) or "none: alpha / rank is 1",
        "numbers": sum(tensor.numel() for tensor in state.values()),
        "stored as": _most(str(tensor.dtype).removeprefix("torch.") for key, tensor in state.items()
                           if not key.endswith(".alpha")),
        "steps": steps,
        **{key.partition(".")[2] or key: header.get(key) for key in _SHOWN},
        "keys that are not understood": sum("" in matrices for matrices in modules.values()) or None,
        "note": lora.note,
    }
    try:
        keys.check_complete(state)
    except UserError as error:
        found["fault"] = str(error)
    return {name: value for name, value in found.items() if value not in (None, "")}


def _inspect(arguments: argparse.Namespace) -> int:
    found = told(_read(arguments.file))
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    width = max(map(len, found))
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in found.items()))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    lora = _read(arguments.file)
    state = convert.converted(lora, arguments.to)
    _write(arguments.output, state, lora.metadata)
    print(f"{arguments.output}: {len(keys.modules_of(keys.normalize(state)))} modules under {arguments.to}'s names")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    given = [_weighted(text) for text in arguments.files]
    loras = [(_read(path), weight) for path, weight in given]
    summed = merge.merged(loras, arguments.rank)
    names = " + ".join(f"{weight:g} x {path.name}" for path, weight in given)
    if arguments.into is not None:
        _check_new(arguments.output)
        count = merge.merge_into(arguments.into, summed.state, 1.0, arguments.output, {"wantune.merged": names})
        print(f"{arguments.output}: {arguments.into.name} with {names} in {count} of its modules")
        return 0
    header = {**loras[0][0].metadata, "wantune.merged": names, "ss_network_dim": str(summed.rank),
              "ss_network_alpha": str(summed.rank)}
    _write(arguments.output, summed.state, header)
    cut = f", {summed.kept:.2%} of it kept" if summed.kept < 1 else ""
    print(f"{arguments.output}: {names}, rank {summed.rank}{cut}")
    return 0


def _weighted(text: str) -> tuple[Path, float]:
    """The file and the weight of FILE=WEIGHT; a file may itself have such a name."""
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_file():
        return Path(text), 1.0
    try:
        return Path(name), float(weight)
    except ValueError:
        raise UserError(f"{text} has the weight {weight!r}; write FILE=WEIGHT, such as {name}=0.5.") from None


def _read(path: Path) -> LoraStateDict:
    if not path.is_file():
        raise UserError(f"There is no file {path}; give a LoRA file.")
    return lora_file.read(path)


def _write(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    _check_new(path)
    lora_file.save(path, state, {name: value for name, value in metadata.items() if name != "format"})


def _check_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists, and no file is overwritten; choose another name.")


def _kind(matrices: Mapping[str, torch.Tensor]) -> str:
    names = " ".join(matrices)
    return next((kind for start, kind in _KINDS.items() if start in names), "not understood")


def _rank(matrices: Mapping[str, torch.Tensor]) -> int | str:
    for name, along in (("lora_A.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if name in matrices and matrices[name].ndim:
            return matrices[name].shape[along]
    return "full"


def _most(values) -> object:
    """The value of all modules, or the values with how many have each."""
    counts = Counter(values).most_common()
    if len(counts) < 2:
        return counts[0][0] if counts else None
    more = f", and {len(counts) - 4} others" if len(counts) > 4 else ""
    return ", ".join(f"{value} ({count} modules)" for value, count in counts[:4]) + more
