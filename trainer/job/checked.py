"""The sections of a settings file, checked key by key: what is unknown is answered with what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from ..base.errors import UserError
from .widgets import SECTIONS, Section, Value

LOAD, DATASET, TRAIN, PREVIEWS, MODELS = (
    "load_dataset", "dataset_settings", "train_wan_lora", "preview_settings", "models")

JOB = "job"
"""The section that a job's own file has besides; see folder.py."""


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


def with_fractions(section: str, content: Mapping | list) -> dict | list:
    """The same with 32.0 in the place of 32 where a number may have a fraction."""
    if isinstance(content, list):
        return [with_fractions(section, each) for each in content]
    return {name: with_fractions(name, value) if name == DATASET else
            float(value) if SECTIONS[section].widget(name).type is float else value for name, value in content.items()}


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(name, known, 1, 0.6)
    return f"did you mean {close[0]}" if close else f"there are {', '.join(known)}"
