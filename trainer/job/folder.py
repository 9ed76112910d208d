"""A job: a folder that takes a run to another machine.

    job.toml       the settings, in the sections of settings.py, and [job]: its version and what the models are known by
    files.json     what the files of the dataset and of the cache are known by
    README.md      the one command
    data/1/        a copy of each dataset folder, unless it is only referred to
    cache/         the encoded dataset and dataset.json, if it is included: then neither VAE nor text encoder is needed
    models/        where the models may be put

The base model keeps the id that it has in ComfyUI where its file is the same, so that the run is the same run: its
folder goes back into output/wantune, and the graph goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError
from ..data import folder as data_folder
from ..data.folder import CAPTION_FILES, CAPTION_SUFFIXES, SUFFIXES, Entry, key_of
from ..data.notes import Notes
from ..encoded.cache import CachedDataset
from . import digests, encoded, settings
from .checked import JOB, LOAD
from .digests import Print
from .settings import Settings

VERSION = 1
"""Raise it when an earlier version would misread what is written."""

JOB_FILE, FILES_FILE, README_FILE = "job.toml", "files.json", "README.md"

DATA, CACHE, MODELS = "data", "cache", "models"

CACHED_FILE = "dataset.json"
"""In CACHE."""

_AGAIN = "copy the job again"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What a job says of a model."""

    name: str
    """Of its file."""
    print: Print | None
    """None where the file was not found when the job was written."""
    id: str
    """Of the model as ComfyUI knows it; "" where it is no base model."""


@dataclass(frozen=True, slots=True)
class KnownData:
    """What a job says of a dataset folder."""

    folder: Path
    """Where it is looked for here."""
    copy: str
    """Its place in the job, such as data/1, whether it is there or not."""
    files: Mapping[str, Print]
    """By their names in the folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was read."""

    folder: Path
    settings: Settings
    models: Mapping[str, KnownModel]
    """By their keys in the section models."""
    data: tuple[KnownData, ...]
    """Of each section load_dataset."""
    cache: Mapping[str, Print]
    """Sizes of the files of the cache, by name; empty where it is not included."""

    def cached(self) -> CachedDataset | None:
        """The encoded dataset; None where the job has none.

        Raises:
            UserError: not all of it is there.
        """
        if not self.cache:
            return None
        place = self.folder / CACHE
        found = {name: place / name for name in self.cache if (place / name).is_file()}
        digests.compare(self.cache, found, place, "the cache", _AGAIN)
        return encoded.from_json(_read_json(place / CACHED_FILE), place)

    def check_data(self) -> None:
        """Raises UserError unless the dataset folders hold just the files that were exported."""
        for known in {each.folder: each for each in self.data}.values():
            if not known.folder.is_dir():
                raise UserError(f"The data of the job is not here, there is no folder {known.folder}; copy it to "
                                f"{self.folder / known.copy}, or write into {JOB_FILE} where it is.")
            there = {key_of(entry.name): entry for entry in data_files(known.folder)}
            found = {name: there.pop(key_of(name)).path for name in known.files if key_of(name) in there}
            digests.compare(known.files, found, known.folder, "the data",
                            "copy it again, or export the job anew if it was changed on purpose")
            for entry in there.values():
                raise UserError(f"{entry.name} in {known.folder} was not there when the job was exported; take it out, "
                                "or export the job anew.")

    def check_models(self, found: Mapping[str, Path]) -> dict[str, str]:
        """Hold model files against those of the job.

        Args:
            found: files, or folders of diffusers, by their keys in the section models.

        Returns:
            The id of each that is the very file, by key, "" for all others. Those are models of their own, and a run on
            them is another run.

        Raises:
            UserError: a file has the name of the job's and another content.
        """
        ids = {}
        for role, path in found.items():
            known, ids[role] = self.models.get(role), ""
            if known is None or known.print is None or not path.is_file():
                continue
            is_named_so = path.name == known.name
            if path.stat().st_size == known.print.size and digests.of(path) == known.print:
                ids[role] = known.id
            elif is_named_so:
                raise UserError(f"{path} is not the file {known.name} of the job, its content differs ("
                                f"{path.stat().st_size} bytes, {known.print.size} there); get the same file, or give "
                                "another one a name of its own to train on it.")
        return ids


def data_files(root: Path) -> Iterator[Entry]:
    """The files of a dataset folder that count: pictures and clips, masks, control clips and captions.

    Raises:
        UserError: the folder does not exist or cannot be read.
    """
    for entry in data_folder.walk(root, Notes()):
        if (entry.suffix in SUFFIXES or entry.suffix in CAPTION_SUFFIXES
                or entry.path.name.lower() in CAPTION_FILES):
            yield entry


def read(folder: Path) -> Job:
    """The job in a folder. Its files are not looked at before they are asked for.

    Raises:
        UserError: there is none, it is damaged or of a newer version, or its settings are not taken.
    """
    folder = Path(folder).absolute()
    folder = folder.parent if folder.name == JOB_FILE else folder
    if not (folder / JOB_FILE).is_file():
        raise UserError(f"{folder} is no job, it has no {JOB_FILE}; give the folder that Export Training Job wrote.")
    sections = settings.read(folder / JOB_FILE)
    about = sections.pop(JOB, {})
    _check_version(about, folder)
    listed = _read_json(folder / FILES_FILE)
    try:
        models = {role: _model(each) for role, each in about.get("models", {}).items()}
        cache = {name: Print(size) for name, size in listed["cache"].items()}
        data = tuple(_data(folder, *each) for each in zip(sections.get(LOAD, []), listed["data"], strict=True))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{JOB_FILE} and {FILES_FILE} in {folder} do not belong together or are damaged "
                        f"({type(error).__name__}: {error}); {_AGAIN}.") from None
    return Job(folder, settings.of(sections, folder, is_exact=True), models, data, cache)


def _check_version(about: Mapping, folder: Path) -> None:
    version = about.get("version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{JOB_FILE} in {folder} does not say of which version it is; {_AGAIN}.")
    if version > VERSION:
        raise UserError(f"The job in {folder} is of version {version}, this WanTune reads versions up to {VERSION}; "
                        "update WanTune here.")


def _model(told: Mapping) -> KnownModel:
    known = Print(told["size"], told["digest"]) if "digest" in told else None
    return KnownModel(told["name"], known, told.get("id", ""))


def _data(job: Path, section: dict, told: Mapping) -> KnownData:
    """What is known of a dataset folder; the section gets the copy in the job where its own folder is not here."""
    copy = told["copy"]
    if not (job / section["folder"]).is_dir() and (job / copy).is_dir():
        section["folder"] = copy
    files = {name: Print(*each) for name, each in told["files"].items()}
    return KnownData((job / section["folder"]).resolve(), copy, files)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({getattr(error, 'strerror', None) or error}); {_AGAIN}."
                        ) from None
