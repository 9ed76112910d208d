"""A run on disk: config.json, log.jsonl, step_*/ with safetensors + JSON. No pickle anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from .config import UserError
from .events import Event, to_json
from .files import replacing

_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


def check_name(name: str) -> str:
    """A name that is a legal file name on every system, stripped.

    Raises:
        UserError: empty, "." or "..", or with a character that some system refuses.
    """
    stripped = name.strip()
    unsafe = _UNSAFE.search(stripped)
    if unsafe:
        raise UserError(f"run_name {name!r} has the character {unsafe.group()!r}; use letters, digits, _ and -.")
    if not stripped.strip("."):
        raise UserError(f"run_name is {name!r}; give the run a name such as my_lora.")
    return stripped


class RunFolder:
    """One run: `<root>/<name>-<first 8 digits of its key>/`."""

    def __init__(self, root: Path, name: str, key: str, config: Mapping) -> None:
        self.path = root / f"{check_name(name)}-{key[:8]}"
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "config.json", {"run_name": name, "key": key, **config})
        self._log = self.path / "log.jsonl"
        self._log.write_text("", encoding="utf-8")

    def log(self, event: Event) -> None:
        """Append one line; it is on disk when this returns, also for someone who reads along."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(event)) + "\n")

    def save_step(self, step: int, adapter: Mapping[str, torch.Tensor], state: Mapping) -> Path:
        """Write step_<step>/ as a whole or not at all."""
        final = self.path / f"step_{step:06d}"
        building = self.path / f"{final.name}.{uuid.uuid4().hex}.tmp"
        building.mkdir()
        try:
            save_file(dict(adapter), building / "adapter.safetensors")
            _write_json(building / "state.json", {"step": step, **state})
            if final.exists():
                shutil.rmtree(final)
            os.replace(building, final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return final


def _write_json(path: Path, content: Mapping) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
