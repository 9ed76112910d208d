"""`wantune export`: a checkpoint as a LoRA file, and a run as a folder for another machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..trainer.base.errors import UserError
from ..trainer.job import configs
from ..trainer.job.checked import PREVIEWS, TRAIN
from ..trainer.job.models import find
from ..trainer.job.settings import Settings
from ..trainer.job.writing import Content, ModelFile, write
from ..trainer.lora import file as lora_file
from ..trainer.runs import checkpoints
from . import data, given
from .engine import Engine
from .given import Given
from .runs import folder_of
from .terminal import Terminal


def run(arguments: argparse.Namespace) -> int:
    """One of its actions."""
    return _job(arguments) if arguments.action == "job" else _lora(arguments)


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


def _job(arguments: argparse.Namespace) -> int:
    terminal = Terminal()
    asked = given.of(arguments, terminal)
    settings, cache = asked.settings, data.cache_folder(arguments)
    if asked.job is not None:
        raise UserError(f"{asked.job.folder} is a job already; copy that folder.")
    found = data.scanned(settings, cache, terminal)
    cached = None
    if arguments.include_cache:
        cached = data.encoded(settings, cache, Engine(settings.models, cache, terminal.say), terminal, found)
    content = Content(
        sections=_sections(asked), dataset=found, models=_models(settings, has_cache=cached is not None),
        dtype=settings.models.dtype, cached=cached, has_data=arguments.include_dataset,
        loras={key: lora_file.load(Path(name)) for key, name in (
            ("continue_from", settings.continue_from), ("continue_from_low", settings.continue_from_low)) if name})
    print(data.followed(write(arguments.output.absolute(), content), "writing", terminal))
    return 0


def _sections(asked: Given) -> dict[str, dict]:
    settings, sections = asked.settings, configs.of_train(asked.settings.train)
    train = {"run_name": settings.run_name, "order": settings.order, "attempt": settings.attempt}
    previews = {PREVIEWS: asked.sections[PREVIEWS]} if settings.previews else {}
    return {**sections, TRAIN: {**sections[TRAIN], **train}, **previews}


def _models(settings: Settings, has_cache: bool) -> dict[str, ModelFile]:
    """The files that are needed; folders of diffusers go by their names."""
    needed = ("model", "model_low", *(() if has_cache and not settings.previews else ("vae", "clip", "clip_vision")))
    roles = [role for role in needed if getattr(settings.models, role)]
    return {role: ModelFile(path.name, path if path.is_file() else None)
            for role, path in find(settings.models, Path.cwd(), roles).items()}
