"""A run of six steps on the small world with a checkpoint after each second one, for tests that use runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig

from . import tools


@dataclass
class World:
    """Models, an output folder, and the runs that were trained into it."""

    output: Path
    model: object
    vae: object
    clip: object
    cached: object
    runs: dict = field(default_factory=dict)
    """The LoRA and the folder of each run by its name."""

    def conditioning(self, text: str) -> list:
        with torch.inference_mode():
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def train(self, name: str, evaluate_steps: int = 0, **settings) -> Path:
        """A run of six steps; with `evaluate_steps` there is a best checkpoint."""
        from wantune.nodes import train

        validation = ValidationConfig(every_steps=2, every_minutes=0, keep_last=9, evaluate_epochs=0,
                          evaluate_steps=evaluate_steps)
        config = TrainConfig(**{"epochs": 99, "max_steps": 6, "learning_rate": 2e-2, "lora": LoraConfig(rank=4),
                                "validation": validation, **settings})
        lora, _, folder = train.train(self.model, self.cached, name, config, tools.Watch())
        self.runs[name] = lora, Path(folder)
        return Path(folder)


def world(folder: Path) -> World:
    """Three pictures to train on and one held out."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    vae, clip = tools.load_vae(), tools.load_clip()
    pictures = tools.write_pictures(folder / "pictures")
    config = DatasetConfig(folder=str(pictures), resolution=64, num_repeats=1, trigger_word="zwx", validation_items=1)
    store = Store(folder / "cache")
    cached = tools.drained(fill(scan.scan(config), store, WanCodec(vae), {"text": CaptionEncoder(clip)}))[1]
    return World(folder / "output", tools.load_dit(tools.WORLD / "dit.safetensors"), vae, clip, cached)


def output_folder(path: Path):
    """Set ComfyUI's output folder; the MonkeyPatch that is returned puts it back by undo()."""
    import folder_paths

    patch = pytest.MonkeyPatch()
    patch.setattr(folder_paths, "output_directory", str(path))
    return patch
