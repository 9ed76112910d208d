"""A settings file: the sections of `widgets` in TOML or JSON, and the records that are made of them.

    [[load_dataset]]                 one, or several that are joined
    folder = "my pictures"           absolute, or relative to the file
        [load_dataset.dataset_settings]

    [train_wan_lora]                 and one section for each settings node; what is left out has its default
    epochs = 20
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch

from ..base.errors import UserError
from ..model import families
from ..runs.folder import check_name
from ..settings.checks import check_least
from ..settings.data import DatasetConfig
from ..settings.memory import MemoryConfig
from ..settings.training import (
    AS_SAMPLED,
    BY_TURNS,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from . import configs
from .widgets import SECTIONS, Section, Value

LOAD, DATASET, TRAIN, PREVIEWS, MODELS = (
    "load_dataset", "dataset_settings", "train_wan_lora", "preview_settings", "models")

JOB = "job"
"""The section that a job's own file has besides; see folder.py."""

_NOISE_LEVELS = 1000
"""Of ComfyUI's model, among which its scheduler "simple" chooses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Names or paths of the files of the models; "" where there is none."""

    model: str = ""
    model_low: str = ""
    vae: str = ""
    clip: str = ""
    clip_vision: str = ""
    folder: str = ""
    """Where files of these names are looked for, in all folders below."""
    quantization: str = "none"
    """One of widgets.QUANTIZATIONS."""
    dtype: str = "bfloat16"
    """One of widgets.DTYPES: what is computed in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewPlan:
    """What is sampled while a run goes on, and how often."""

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 448
    """Of the video, in pixels, like `height`."""
    height: int = 256
    frames: int = 17
    steps: int = 15
    cfg: float = 5.0
    shift: float = 5.0
    """Of the noise levels, as in ModelSamplingSD3."""
    seed: int = 0
    every_epochs: int = 2
    """0 = not by epochs."""
    every_steps: int = 0
    """0 = not by steps."""
    sampler_name: str = "euler"
    """As in KSampler, like `scheduler`."""
    scheduler: str = "simple"
    switch_at_step: int = 0
    """The step from which the low-noise expert samples; 0 where there is none."""

    def __post_init__(self) -> None:
        check_least(self, width=16, height=16, frames=1, steps=1, cfg=0, shift=0.01, seed=0, every_epochs=0,
                    every_steps=0, switch_at_step=0)
        families.DEFAULT.check_frames(self.frames, "frames of preview_settings")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels of the sampler, falling, with the 0 at the end.

        Raises:
            UserError: they are those of a scheduler that only ComfyUI has.
        """
        if self.scheduler != "simple":
            raise UserError(f"timesteps is {AS_SAMPLED} and scheduler is {self.scheduler}, whose noise levels only "
                            "ComfyUI knows; set scheduler to simple, or give the levels as sigmas.")
        levels = torch.arange(1, _NOISE_LEVELS + 1) / _NOISE_LEVELS  # fp32, as ComfyUI has them
        levels = self.shift * levels / (1 + (self.shift - 1) * levels)
        stride = _NOISE_LEVELS / self.steps
        chosen = [levels[-1 - int(step * stride)].item() for step in range(self.steps)]
        return (*(round(level, 6) for level in chosen), 0.0)  # rounded as nodes/train.py does


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All that a run needs to be told, without ComfyUI."""

    datasets: tuple[DatasetConfig, ...]
    train: TrainConfig
    run_name: str = "my_lora"
    models: Models = Models()
    previews: PreviewPlan | None = None
    """None where there are no prompts."""
    continue_from: str = ""
    """The file of a LoRA to begin with, "" for none; likewise `continue_from_low` for the low-noise expert."""
    continue_from_low: str = ""
    restart: bool = False
    attempt: int = 0
    """Both as of training.run.Run."""
    order: str = BY_TURNS
    """One of settings.training.ORDERS."""


def read(path: Path) -> dict:
    """The sections of a TOML or JSON file, as it has them; `of` checks them.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if path.suffix.lower() == ".json" else _toml().loads(text)
    except OSError as error:
        raise UserError(f"The settings {path} cannot be read ({error.strerror}); check the path.") from None
    except ValueError as error:  # of both formats, and of what is not UTF-8
        raise UserError(f"The settings {path} cannot be read ({error}); mend that line, and save the file as UTF-8."
                        ) from None


def _toml():
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    return tomllib


def of(sections: Mapping, base: Path) -> Settings:
    """The records that are made of a settings file.

    Args:
        base: what folders are relative to; of a file, the folder in which it lies.

    Raises:
        UserError: a section or key is unknown, or a value is not taken; the sentence names it.
    """
    sections = checked(sections)
    previews, train = sections.get(PREVIEWS, {}), dict(sections.get(TRAIN, {}))
    plan = PreviewPlan(**{**previews, "prompts": _prompts(previews)})
    about_run = {name: train.pop(name) for name in ("run_name", "continue_from", "continue_from_low", "restart",
                                                    "attempt", "order") if name in train}
    check_name(about_run.get("run_name", "my_lora"))
    return Settings(
        datasets=tuple(_dataset(each, base) for each in sections.get(LOAD, ())),
        train=_train(train, sections, plan),
        models=Models(**sections.get(MODELS, {})),
        previews=plan if plan.prompts else None,
        **about_run)


def checked(sections: Mapping) -> dict:
    """The sections with each value as its widget has it; load_dataset is a list, each with its dataset_settings.

    Raises:
        UserError: as `of`, for what a single key shows.
    """
    if not isinstance(sections, Mapping):
        raise UserError(f"The settings are {type(sections).__name__}; write sections, such as [{TRAIN}].")
    if JOB in sections:
        raise UserError("These settings are the job.toml of a job; give the folder in which it lies.")
    found = {}
    for name, content in sections.items():
        section = SECTIONS.get(name)
        if section is None:
            raise UserError(f"There is no section {name!r}; {_nearest(name, SECTIONS)}.")
        if name == LOAD:
            found[name] = [_checked_dataset(each) for each in (content if isinstance(content, list) else [content])]
        else:
            found[name] = _checked(section, content)
    shared = found.pop(DATASET, {})
    for dataset in found.get(LOAD, ()):
        dataset[DATASET] = {**shared, **dataset[DATASET]}
    return found


def _checked_dataset(content: object) -> dict:
    own = dict(content) if isinstance(content, Mapping) else content
    settings = own.pop(DATASET, {}) if isinstance(own, dict) else {}
    return {**_checked(SECTIONS[LOAD], own), DATASET: _checked(SECTIONS[DATASET], settings)}


def _checked(section: Section, content: object) -> dict[str, Value]:
    if not isinstance(content, Mapping):
        raise UserError(f"{section.name} is {content!r}; write it as a section, [{section.name}], with its keys below.")
    found = {}
    for name, value in content.items():
        widget = section.widget(name)
        if widget is None:
            known = [each.name for each in section.widgets]
            raise UserError(f"{section.name} has no key {name!r}; {_nearest(name, known)}.")
        found[name] = widget.taken(value, f"{name} of {section.name}")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(name, known, 1, 0.6)
    return f"did you mean {close[0]}" if close else f"there are {', '.join(known)}"


def _dataset(section: Mapping, base: Path) -> DatasetConfig:
    widgets = {"frame_buckets": SECTIONS[LOAD].widget("frame_buckets").default, **section}
    settings, folder = configs.dataset_settings(**widgets.pop(DATASET)), widgets.pop("folder", "").strip()
    if not folder:
        raise UserError("folder of load_dataset is empty; give the folder that holds your pictures.")
    return configs.dataset_config(str((base / folder).resolve()), settings=settings, **widgets)


def _train(widgets: Mapping, sections: Mapping, plan: PreviewPlan) -> TrainConfig:
    objective = dict(sections.get("timestep_and_loss_settings", {}))
    sigmas = _numbers(objective.pop("sigmas", ""), "sigmas of timestep_and_loss_settings")
    if objective.get("timesteps") == AS_SAMPLED:
        objective["sigmas"] = sigmas or (plan.sigmas if PREVIEWS in sections else ())
    return configs.train_config(
        **{"preset": SECTIONS[TRAIN].widget("preset").default, **widgets},
        adapter=sections.get("adapter_settings"),
        optimizer=OptimizerConfig(**sections.get("optimizer_settings", {})),
        objective=ObjectiveConfig(**objective),
        validation=ValidationConfig(**sections.get("validation_and_checkpoint_settings", {})),
        memory=MemoryConfig(**sections.get("memory_settings", {})))


def _prompts(previews: Mapping) -> tuple[str, ...]:
    return tuple(line.strip() for line in previews.get("prompts", "").splitlines() if line.strip())


def _numbers(text: str, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{where} is {text!r}; give numbers that fall, such as 1.0, 0.5, 0.0.") from None


def to_toml(sections: Mapping) -> str:
    """Sections as TOML; a list of sections becomes [[name]], a section in a section [name.other].

    Raises:
        UserError: a text holds what is no character.
    """
    lines = []
    for name, content in sections.items():
        for each in content if isinstance(content, list) else [content]:
            lines += ["", f"[[{name}]]" if isinstance(content, list) else f"[{name}]", *_table(name, each)]
    return "\n".join(lines[1:]) + "\n"


def _table(name: str, content: Mapping) -> list[str]:
    lines = [f"{key} = {_toml_value(value)}" for key, value in content.items() if not isinstance(value, Mapping)]
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}.{key}]", *_table(f"{name}.{key}", value)]
    return lines


def _toml_value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{value!r} holds what is no character; rename that file or folder.") from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
