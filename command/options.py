"""A flag for each key of a settings file, which is one for each widget of the nodes.

A key that only one section has is a flag by itself, `--rank`; any is one with its section, `--train-wan-lora.rank`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from ..trainer.job.widgets import SECTIONS, Section, Value, Widget, told

Sections = dict[str, Any]
"""A settings file as it is read: {section: {key: value}}, and lists of these where a section comes several times."""

DATA = ("load_dataset", "dataset_settings")
RUN = (*DATA, "train_wan_lora", "adapter_settings", "optimizer_settings", "timestep_and_loss_settings",
       "validation_and_checkpoint_settings", "memory_settings", "preview_settings", "models")
ENCODED = (*DATA, "models")

_SHORT = {"folder": "load_dataset", "model": "models", "seed": "train_wan_lora", "name": "",
          "shift": "timestep_and_loss_settings", "every_epochs": "validation_and_checkpoint_settings",
          "every_steps": "validation_and_checkpoint_settings"}
"""The section whose key is meant by a name that several have, or that would say too little alone ("")."""

PATHS = {("load_dataset", "folder"), ("train_wan_lora", "continue_from"), ("train_wan_lora", "continue_from_low")} | {
    ("models", name) for name in ("model", "model_low", "vae", "clip", "clip_vision", "folder")}
"""Keys that may name a file or a folder: on the command line from the present folder, in a file from the file's."""

_COUNTS = Counter(widget.name for section in SECTIONS.values() for widget in section.widgets)


def add(parser: argparse.ArgumentParser, sections: Iterable[str], short: str = "") -> None:
    """Add the flags of sections to a parser, a group for each.

    Args:
        short: the section whose keys are flags by themselves in any case.
    """
    for name in sections:
        section = SECTIONS[name]
        group = parser.add_argument_group(section.display_name or "Models", section.about)
        for widget in section.widgets:
            alone = name in (short, _SHORT.get(widget.name, name if _COUNTS[widget.name] == 1 else ""))
            whole = flag_of(name, widget.name)
            _add(group, section, widget, _flag(widget.name) if alone else whole, _help(widget))
            if alone:
                _add(group, section, widget, whole, argparse.SUPPRESS)


def flag_of(section: str, key: str) -> str:
    """The flag of a key with its section."""
    return _flag(f"{section}.{key}")


def given(arguments: argparse.Namespace) -> dict[str, dict[str, Value]]:
    """{section: {key: value}} of the flags that were given; paths that exist from here are absolute."""
    found: dict[str, dict[str, Value]] = {}
    for dest, value in vars(arguments).items():
        section, _, key = dest.partition(".")
        if key:
            is_path = (section, key) in PATHS and value and Path(value).expanduser().exists()
            found.setdefault(section, {})[key] = str(Path(value).expanduser().absolute()) if is_path else value
    return found


def merged(sections: Mapping[str, Any], flags: Mapping[str, Mapping[str, Value]]) -> Sections:
    """The sections of a settings file with those flags instead of what it says.

    Flags of Load Dataset and Dataset Settings are for all datasets of the file.

    Raises:
        UserError: a folder is given where the file has several datasets.
    """
    found = {name: _copied(value) for name, value in sections.items()}
    for name, values in flags.items():
        if name not in DATA:
            found[name] = {**found.get(name, {}), **values}
    several = found.get("load_dataset", {})
    datasets = several if isinstance(several, list) else [several]
    if len(datasets) > 1 and "folder" in flags.get("load_dataset", {}):
        raise UserError(f"--folder is given, but the settings have {len(datasets)} datasets; change their folders "
                        "there.")
    shared = flags.get("dataset_settings", {})
    for number, dataset in enumerate(datasets):
        if not isinstance(dataset, Mapping):
            return found  # which is refused where it is read
        dataset = {**dataset, **flags.get("load_dataset", {})}
        if "dataset_settings" in dataset and shared:
            dataset["dataset_settings"] = {**dataset["dataset_settings"], **shared}
        datasets[number] = dataset
    if shared and any("dataset_settings" not in dataset for dataset in datasets):
        found["dataset_settings"] = {**found.get("dataset_settings", {}), **shared}
    if any(datasets):
        found["load_dataset"] = datasets if isinstance(several, list) else datasets[0]
    return found


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _add(group, section: Section, widget: Widget, flag: str, text: str) -> None:
    dest = f"{section.name}.{widget.name}"
    if widget.type is bool:
        group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return

    def read(text: str) -> Value:
        try:
            return widget.read(text, widget.name)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    metavar = {int: "N", float: "X", str: "NAME" if widget.choices else "TEXT"}[widget.type]
    group.add_argument(flag, dest=dest, type=read, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _help(widget: Widget) -> str:
    choices = f" One of: {'; '.join(widget.choices)}." if widget.choices else ""
    default = told(widget.default) if widget.default != "" else "none"
    if widget.type is bool:
        default = "on" if widget.default else "off"
    elif widget.choices:
        default = str(widget.default)
    return f"{widget.help}{choices} Default: {default}.".replace("%", "%%")
