"""`wantune export`: a checkpoint as a LoRA file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..trainer.base.errors import UserError
from ..trainer.lora import file as lora_file
from ..trainer.runs import checkpoints
from .runs import folder_of


def run(arguments: argparse.Namespace) -> int:
    """One of its actions."""
    return _lora(arguments)


def _lora(arguments: argparse.Namespace) -> int:
    folder = folder_of(arguments.run, arguments.runs)
    known = checkpoints.checkpoints(folder)
    step = known.one(arguments.checkpoint)
    path = arguments.output or Path(f"{folder.name}_step{step}.safetensors")
    if path.exists():
        raise UserError(f"{path} exists, and no file is overwritten; choose another name with --output.")
    lora = checkpoints.load(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    lora_file.save(path, lora, lora.metadata)
    print(f"{path}: {folder.name}, {known.label(step)}")
    return 0
