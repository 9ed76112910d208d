"""Control clips: a second clip of the same name that shows each frame in another way, such as its depth or its poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError
from ..base.files import Stamp
from ..model.family import ModelFamily
from ..settings.data import DatasetConfig
from . import masks
from .facts import Facts
from .folder import CONTROLS, Entry
from .notes import Notes
from .windows import Cut, Source

MAX_LATE = 0.5
"""Seconds by which a control clip may end before or after its clip without a note."""


@dataclass(frozen=True, slots=True)
class Control:
    """The file of a control clip, or of a picture that controls a picture."""

    path: Path
    name: str
    digest: str
    """sha256 of the file's bytes."""
    stamp: Stamp
    source: Source | None
    """What the clip holds; None for a picture."""
    background: str
    reading: str
    """As of a Sample, like `background`."""


def read(
    name: str, own: Facts, found: tuple[Entry, Facts] | None, cuts: Sequence[Cut], config: DatasetConfig,
    family: ModelFamily, notes: Notes,
) -> Control:
    """The control clip of a picture or clip, which has every frame that is trained on.

    Args:
        name: of the picture or clip; `own` is what its file holds.
        found: the control clip's file; None where there is none.
        cuts: what is trained on.

    Raises:
        UserError: there is none, or it cannot be used; the sentence names both files.
    """
    if found is None:
        raise UserError(f"{name} has no control clip; put one of the same name into a folder {CONTROLS} beside it.")
    entry, held = found
    if held.fault:
        raise UserError(f"{name} has a control clip that cannot be used: {held.fault}")
    if held.digest == own.digest:
        raise UserError(f"{name} is its own control clip, {entry.name} is the same file; make the control clip of it.")
    if own.source is None and held.source is not None:
        raise UserError(f"{name} is a picture, its control clip {entry.name} moves; save the frame of it that belongs "
                        "to the picture.")
    if own.source is not None and held.source is None:
        raise UserError(f"{name} is a clip, its control clip {entry.name} a picture; use a clip.")
    if not masks.fits((held.width, held.height), (own.width, own.height)):
        raise UserError(f"{name} is {own.width}x{own.height}, its control clip {entry.name} is "
                        f"{held.width}x{held.height}; make it of the clip's shape.")
    if own.source is not None:
        _check_time(name, own.source, entry.name, held.source, cuts, family, notes)
    return Control(entry.path, entry.name, held.digest, held.stamp, held.source,
                   config.background if held.is_layered else "", held.reading)


def _check_time(
    name: str, own: Source, control: str, source: Source, cuts: Sequence[Cut], family: ModelFamily, notes: Notes
) -> None:
    needed, there = max(cut.frames + start for cut in cuts for start in cut.starts), source.frames_at(family.fps)
    if there + 1 < needed:  # the last frame may be held for one more
        raise UserError(f"{name} is trained on up to frame {needed} at {family.fps} fps, its control clip {control} "
                        f"has {there}; make it as long as the clip.")
    if abs(own.seconds - source.seconds) > MAX_LATE:
        notes.add(name, f"lasts {float(own.seconds):.1f} s, its control clip {float(source.seconds):.1f} s; they are "
                        "read at the same times, so both must begin together and run at the same speed.")
