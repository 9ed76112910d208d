"""What was asked for: a settings file, or another trainer's, or a job, with the flags that overrule it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from ..trainer.encoded.cache import CachedDataset
from ..trainer.job import folder as jobs
from ..trainer.job import settings
from ..trainer.job.checked import JOB, LOAD
from ..trainer.job.folder import Job
from ..trainer.job.models import find
from ..trainer.job.settings import Settings
from ..trainer.runs import history
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
    job: Job | None = None
    """The folder that they come from, where it is a job's."""

    def dataset(self) -> CachedDataset | None:
        """The encoded dataset of a job that has one; else the data of the job, if there is one, is checked.

        Raises:
            UserError: not all of it is there, or it is not what was exported.
        """
        if self.job is None:
            return None
        cached = self.job.cached()
        if cached is None:
            self.job.check_data()
        return cached

    def base_id(self, role: str) -> str:
        """What the model is called where the job came from, if it is the very file; "" otherwise.

        Raises:
            UserError: it has the name of the job's file and another content.
        """
        if self.job is None:
            return ""
        return self.job.check_models(find(self.settings.models, self.job.folder, [role]))[role]


def of(arguments: argparse.Namespace, terminal: Terminal) -> Given:
    """The settings of a command that has a positional SETTINGS.

    Raises:
        UserError: there are none, several sources are given, or one has what is not taken.
    """
    given = arguments.settings
    if given is not None and (given.is_dir() or given.name == jobs.JOB_FILE):
        _check_alone(arguments)
        return of_job(given, arguments)
    return checked(_sections(arguments, terminal), arguments)


def of_file(path: Path, arguments: argparse.Namespace) -> Given:
    """The settings of a file, with flags.

    Raises:
        UserError: as `of`.
    """
    return checked(absolute(settings.read(path), path.absolute().parent), arguments)


def of_job(folder: Path, arguments: argparse.Namespace) -> Given:
    """The settings of a job, with flags.

    Raises:
        UserError: there is none, it is damaged or of a newer version; or as `of`.
    """
    job = jobs.read(folder)
    sections = {name: each for name, each in settings.read(job.folder / jobs.JOB_FILE).items() if name != JOB}
    for section, known in zip(sections.get(LOAD, []), job.data, strict=True):
        section["folder"] = str(known.folder)
    whole = options.merged(absolute(sections, job.folder), options.given(arguments))
    return Given(whole, settings.of(whole, job.folder, is_exact=True), job)


def of_source(arguments: argparse.Namespace, source: str) -> tuple[Given, Path | None]:
    """The settings of a run, of a file or of a job, and the run's folder if it is one.

    Raises:
        UserError: there is neither, or the run does not say what it was begun with.
    """
    path = Path(source)
    if path.is_file():
        return of_file(path, arguments), None
    if (path / jobs.JOB_FILE).is_file():
        return of_job(path, arguments), None
    folder = folder_of(source, arguments.runs)
    job = history.read_json(folder / "origin.json").get(JOB)
    if isinstance(job, str):
        return of_job(Path(job), arguments), folder
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
    _check_alone(arguments)
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


def _check_alone(arguments: argparse.Namespace) -> None:
    sources = arguments.settings, arguments.from_diffusion_pipe, arguments.from_musubi
    if sum(map(bool, sources)) > 1:
        raise UserError("Several sources of settings are given; give one, a settings file or that of another trainer.")


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
