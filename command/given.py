"""What was asked for: a settings file, or another trainer's, or a job, with the flags that overrule it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from ..trainer.job import settings
from ..trainer.job.settings import Settings
from . import options
from .options import Sections
from .runs import folder_of
from .terminal import Terminal

KEPT = "settings.toml"
"""The file of a run's folder that holds what it was begun with, for `wantune resume`."""


@dataclass(frozen=True, slots=True)
class Given:
    """The settings of a command."""

    sections: Sections
    """As they are asked for, with absolute paths."""
    settings: Settings


def of(arguments: argparse.Namespace, terminal: Terminal) -> Given:
    """The settings of a command that has a positional SETTINGS.

    Raises:
        UserError: there are none, several sources are given, or one has what is not taken.
    """
    return checked(_sections(arguments, terminal), arguments)


def of_file(path: Path, arguments: argparse.Namespace) -> Given:
    """The settings of a file, with flags.

    Raises:
        UserError: as `of`.
    """
    return checked(absolute(settings.read(path), path.absolute().parent), arguments)


def of_source(arguments: argparse.Namespace, source: str) -> tuple[Given, Path | None]:
    """The settings of a run or of a file, and the run's folder if it is one.

    Raises:
        UserError: there is neither, or the run does not say what it was begun with.
    """
    path = Path(source)
    if path.is_file():
        return of_file(path, arguments), None
    folder = folder_of(source, arguments.runs)
    if not (folder / KEPT).is_file():
        raise UserError(f"{folder.name} was not begun by this command line, so nothing says where its data and models "
                        "are; export it with Export Training Job in ComfyUI, or give its settings to `wantune train`.")
    return of_file(folder / KEPT, arguments), folder


def checked(sections: Mapping[str, Any], arguments: argparse.Namespace) -> Given:
    """Sections with flags.

    Raises:
        UserError: as `of`.
    """
    whole = options.merged(sections, options.given(arguments))
    return Given(whole, settings.of(whole, Path.cwd()))


def show(arguments: argparse.Namespace) -> int:
    """`--print-settings`."""
    print(settings.to_toml(of(arguments, Terminal()).sections), end="")
    return 0


def _sections(arguments: argparse.Namespace, terminal: Terminal) -> Sections:
    sources = arguments.settings, arguments.from_diffusion_pipe, arguments.from_musubi
    if sum(map(bool, sources)) > 1:
        raise UserError("Several sources of settings are given; give one, a settings file or that of another trainer.")
    if arguments.from_diffusion_pipe or arguments.from_musubi:
        # each only where it is asked for
        from . import diffusion_pipe, musubi

        found = (musubi.read(arguments.from_musubi) if arguments.from_musubi
                 else diffusion_pipe.read(arguments.from_diffusion_pipe))
        for note in found.notes:
            terminal.say(f"note: {note}")
        return found.sections
    if arguments.settings is None:
        return {}
    return absolute(settings.read(arguments.settings), arguments.settings.absolute().parent)


def absolute(sections: Any, base: Path) -> Any:
    """The sections of a file with paths that do not depend on where it lies.

    A name of a model stays a name where there is no such file beside the settings: it is looked for later.
    """
    if not isinstance(sections, Mapping):
        return sections  # which is refused where it is read

    def of_section(name: str, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {key: _absolute(value, base, key == "folder") if (name, key) in options.PATHS else value
                for key, value in content.items()}

    return {name: [of_section(name, each) for each in content] if isinstance(content, list)
            else of_section(name, content) for name, content in sections.items()}


def _absolute(value: Any, base: Path, is_folder: bool) -> Any:
    if not (isinstance(value, str) and value.strip()):
        return value
    path = base / Path(value.strip()).expanduser()
    return str(path) if is_folder or path.exists() else value
