"""Files that belong to a picture or clip and lie in a folder of their own beside it: masks, and control clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from . import folder
from .folder import Entry
from .notes import Notes


def paired(
    found: Sequence[Entry], media: Sequence[Entry], name: str, second: str, alone: str, notes: Notes
) -> dict[str, Entry]:
    """The file of each picture and clip that has one, by the picture's name.

    Args:
        found: files in folders called `name`.
        second, alone: the notes about a second file of a name, and about one without a picture.
    """
    stems = {entry.name: folder.stem_of(_without(entry.name, name)) for entry in found}
    by_stem = {stems[entry.name]: entry for entry in found}
    pictured = {entry.name: folder.stem_of(entry.name) for entry in media}
    belonging = {each: by_stem[stem] for each, stem in pictured.items() if stem in by_stem}
    used = {entry.name for entry in belonging.values()}
    for entry in found:
        if entry.name not in used:
            notes.add(entry.name, second if stems[entry.name] in pictured.values() else alone)
    return belonging


def _without(path: str, name: str) -> str:
    """The path without the folder of that name in it."""
    parts = PurePosixPath(path).parts
    level = next(i for i, part in enumerate(parts) if part.lower() == name)
    return "/".join(parts[:level] + parts[level + 1:])
