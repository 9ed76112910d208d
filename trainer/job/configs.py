"""Between widgets and the frozen records of settings, both ways. The nodes and a settings file read widgets alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..data.buckets import read_frames
from ..model import families
from ..settings.adapter import LoraConfig
from ..settings.data import DatasetConfig, parse_prompts, parse_resolutions
from ..settings.memory import MemoryConfig
from ..settings.presets import CUSTOM, fill
from ..settings.training import ObjectiveConfig, OptimizerConfig, TrainConfig, ValidationConfig
from .widgets import SECTIONS, Value


def dataset_settings(
    more_resolutions: str = "", model: str = next(iter(families.DATASETS)), preserve_prompts: str = "", **widgets
) -> dict:
    """The widgets of Dataset Settings as keyword arguments of DatasetConfig.

    Raises:
        UserError: DatasetConfig, or the model, does not take a value.
    """
    family = families.of_dataset(model)
    settings = {"more_resolutions": parse_resolutions(more_resolutions), "family": family.name,
                "preserve_prompts": parse_prompts(preserve_prompts), **widgets}
    family.check_condition(DatasetConfig(folder="", **settings).condition)
    return settings


def dataset_config(folder: str, frame_buckets: str, settings: Mapping | None = None, **widgets) -> DatasetConfig:
    """The widgets of Load Dataset with what `dataset_settings` gives.

    Raises:
        UserError: a value is not taken.
    """
    settings = settings or {}
    family = families.named(settings.get("family", families.DEFAULT.name))
    return DatasetConfig(
        folder=folder, frame_buckets=read_frames(frame_buckets, family), **widgets, **settings)


def train_config(
    preset: str = CUSTOM, adapter: Mapping | None = None, optimizer: OptimizerConfig | None = None,
    objective: ObjectiveConfig | None = None, validation: ValidationConfig | None = None,
    memory: MemoryConfig | None = None, boundary: float = 0.0, **widgets
) -> TrainConfig:
    """The widgets of Train Wan LoRA with those of its settings nodes.

    Args:
        preset: fills in the widgets that are not given. An alpha of 0 is the rank.
        adapter: keyword arguments of LoraConfig, without rank and alpha.

    Raises:
        UserError: a value is not taken.
    """
    objective = replace(objective or ObjectiveConfig(), boundary=boundary)
    values = fill(preset, widgets)
    rank, alpha = values.pop("rank", 32), values.pop("alpha", 32.0)
    lora = LoraConfig(rank=rank, alpha=alpha or float(rank), **(adapter or {}))
    return TrainConfig(
        lora=lora, optimizer=optimizer or OptimizerConfig(), objective=objective,
        validation=validation or ValidationConfig(), memory=memory or MemoryConfig(), **values)


def of_dataset(config: DatasetConfig, folder: str) -> dict:
    """The section load_dataset of a settings file that makes this record, with its dataset_settings in it.

    Args:
        folder: as it is to stand there.
    """
    model = next(choice for choice, family in families.DATASETS.items() if family.name == config.family)
    settings = {**_fields("dataset_settings", config), "model": model,
                "more_resolutions": list(config.more_resolutions), "preserve_prompts": list(config.preserve_prompts)}
    return {**_fields("load_dataset", config), "folder": folder, "frame_buckets": list(config.frame_buckets),
            "dataset_settings": settings}


def of_train(config: TrainConfig) -> dict[str, dict]:
    """The sections of a settings file, by name, that make this record; their values do not depend on any default."""
    objective = _fields("timestep_and_loss_settings", config.objective)
    if config.objective.sigmas:
        objective["sigmas"] = list(config.objective.sigmas)
    return {
        "train_wan_lora": {**_fields("train_wan_lora", config), **_fields("train_wan_lora", config.lora),
                           "preset": CUSTOM, "boundary": config.objective.boundary},
        "adapter_settings": _fields("adapter_settings", config.lora),
        "optimizer_settings": _fields("optimizer_settings", config.optimizer),
        "timestep_and_loss_settings": objective,
        "validation_and_checkpoint_settings": _fields("validation_and_checkpoint_settings", config.validation),
        "memory_settings": _fields("memory_settings", config.memory),
    }


def _fields(section: str, record: object) -> dict[str, Value]:
    """The keys of a section that are fields of the record."""
    return {widget.name: getattr(record, widget.name) for widget in SECTIONS[section].widgets
            if not widget.separator and hasattr(record, widget.name)}
