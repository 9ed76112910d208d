"""Dataset folders of drawn pictures, and what a scan makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wantune.trainer.data import scan as scanning
from wantune.trainer.data.manifest import Manifest, Sample
from wantune.trainer.settings.data import DatasetConfig


def scan(folder: Path, memory: Path | None = None, **settings) -> Manifest:
    """Scan a folder; at resolution 64 and with the trigger word zwx, unless `settings` says otherwise."""
    return scanning.scan(config(folder, **settings), memory)


def config(folder: Path, **settings) -> DatasetConfig:
    """The DatasetConfig that `scan` uses."""
    return DatasetConfig(folder=str(folder), **{"resolution": 64, "trigger_word": "zwx", **settings})


def noise(number: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture of random pixels, another one for each number; `size` is (width, height)."""
    width, height = size
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


def draw(path: Path, number: int = 0, caption: str | None = None, size: tuple[int, int] = (96, 64)) -> Path:
    """Write the picture of `noise`, and its caption unless that is None; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(number, size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def link(path: Path, target: Path | str) -> None:
    """A symbolic link; the test is skipped where the system refuses one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(target, path)
    except (OSError, NotImplementedError) as error:
        pytest.skip(f"no symbolic links here ({error})")


def names(manifest: Manifest) -> list[str]:
    """Names of the files that are trained on, each once."""
    return sorted({clip.name for clip in manifest.samples})


def sample_of(manifest: Manifest, name: str) -> Sample:
    """The one sample of a file."""
    (clip,) = (clip for clip in (*manifest.samples, *manifest.held_out) if clip.name == name)
    return clip


def captions_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The captions of each file that is trained on, by its name."""
    return {clip.name: clip.captions for clip in manifest.samples}


def reasons(manifest: Manifest) -> dict[str, str]:
    """Why files were left out, by name; fails unless each reason names its file and ends as a sentence."""
    for rejection in manifest.rejected:
        assert rejection.name in rejection.reason and rejection.reason.endswith("."), rejection.reason
    return {rejection.name: rejection.reason for rejection in manifest.rejected}


def notes_on(manifest: Manifest, name: str) -> list[str]:
    """The notes about a file."""
    return [note for note in manifest.notes if name in note.split(": ")[0].split(" and ")[0].split(", ")]
