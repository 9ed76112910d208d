"""Writing a job: into a new folder that appears when all of it is there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..base.errors import UserError
from ..base.files import Stamp, beside, delete, replace
from ..base.refusals import in_a_sentence
from ..data.manifest import Manifest
from ..encoded.cache import CachedDataset
from ..encoded.fill import Progress
from . import configs, digests, encoded
from .checked import JOB, LOAD, TRAIN
from .checked import MODELS as MODELS_SECTION
from .folder import CACHE, CACHED_FILE, DATA, FILES_FILE, JOB_FILE, MODELS, README_FILE, VERSION, data_files
from .readme import Told, readme
from .settings import to_toml


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that the job needs."""

    name: str
    """Of its file, without folders."""
    path: Path | None = None
    """None where it is not known."""
    id: str = ""
    """Of a base model, as ComfyUI knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What becomes a job."""

    sections: Mapping[str, Mapping]
    """The settings, without load_dataset and models; see settings.py."""
    dataset: Manifest
    models: Mapping[str, ModelFile]
    """By their keys in the section models."""
    dtype: str
    """One of widgets.DTYPES: what the base model is computed in."""
    cached: CachedDataset | None = None
    """To be included; None for not."""
    has_data: bool = True
    """Whether the dataset folders are copied; else they are referred to."""
    loras: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """LoRAs to begin with, by their keys in the section train_wan_lora."""


def write(folder: Path, content: Content) -> Generator[Progress, None, Path]:
    """Write a job; yields progress, returns the folder. A generator that is closed before leaves nothing.

    Args:
        folder: must not exist.

    Raises:
        UserError: it exists, the cache is that of another dataset, a file changed since it was read, or the disk is
            full.
    """
    if content.cached is not None:
        encoded.check_belongs(content.cached, content.dataset)
    with in_a_sentence("The job cannot be written", folder.parent):
        if folder.exists():
            raise UserError(f"{folder} exists, and a job is never written over; choose another name.")
        half = beside(folder)
        half.mkdir(parents=True)
        try:
            data = yield from _data(half, content)
            cache = (yield from _cache(half, content.cached)) if content.cached else {}
            _texts(half, folder.name, content, data, cache)
            replace(half, folder)
        except BaseException:
            with suppress(OSError):
                delete(half, seconds=1)
            raise
    return folder


def _data(job: Path, content: Content) -> Generator[Progress, None, list[dict]]:
    """Copies the dataset folders, or only looks at them; returns what files.json says of each."""
    _check_unchanged(content.dataset)
    roots = list(dict.fromkeys(Path(config.folder) for config in content.dataset.configs))
    entries = [(number, root, entry) for number, root in enumerate(roots, 1) for entry in data_files(root)]
    found = {number: {"copy": f"{DATA}/{number}", "files": {}} for number, _ in enumerate(roots, 1)}
    for done, (number, root, entry) in enumerate(entries, 1):
        path = entry.path
        if content.has_data:
            path = job / DATA / str(number) / entry.path.relative_to(root)
            _copied(entry.path, path)
        known = digests.of(path)
        found[number]["files"][entry.name] = [known.size, known.digest]
        yield Progress("data", done, len(entries), entry.name, None)
    return [found[1 + roots.index(Path(config.folder))] for config in content.dataset.configs]


def _check_unchanged(dataset: Manifest) -> None:
    for sample in (*dataset.samples, *dataset.held_out):
        for each in (sample, sample.control):
            if each is not None and Stamp.of(each.path) != each.stamp:
                raise UserError(f"{each.name} changed since it was read; queue again.")


def _cache(job: Path, cached: CachedDataset) -> Generator[Progress, None, dict[str, int]]:
    """Puts the files of the cache there; returns their sizes by name."""
    sizes, files = {}, list(encoded.files(cached))
    for done, (name, path) in enumerate(files, 1):
        target = job / CACHE / name
        _linked(path, target)
        sizes[name] = target.stat().st_size
        yield Progress("cache", done, len(files), name, None)
    _write_json(job / CACHE / CACHED_FILE, encoded.to_json(cached))
    return sizes


def _texts(job: Path, name: str, content: Content, data: list[dict], cache: Mapping[str, int]) -> None:
    train = dict(content.sections[TRAIN])
    for key, state in content.loras.items():
        train[key] = f"{key}.safetensors"
        save_file({each: value.contiguous() for each, value in state.items()}, job / train[key])
    datasets = [configs.of_dataset(config, known["copy"] if content.has_data else config.folder)
                for config, known in zip(content.dataset.configs, data, strict=True)]
    models = {role: file.name for role, file in content.models.items()}
    about = {"version": VERSION, "models": {role: _told(file) for role, file in content.models.items()}}
    toml = to_toml({JOB: about, LOAD: datasets, MODELS_SECTION: {**models, "folder": MODELS, "dtype": content.dtype},
                    **content.sections, TRAIN: train})
    (job / JOB_FILE).write_text(toml, encoding="utf-8", newline="\n")
    _write_json(job / FILES_FILE, {"data": data, "cache": cache})
    (job / MODELS).mkdir()
    sizes = [path.stat().st_size for path in job.rglob("*") if path.is_file()]
    told = Told(
        name=name, run_name=train["run_name"], num_samples=len(content.dataset.samples), files=len(sizes) + 1,
        bytes=sum(sizes), has_cache=content.cached is not None,
        models={role: (file.name, about["models"][role].get("size", 0)) for role, file in content.models.items()},
        elsewhere={} if content.has_data else {each["copy"]: config.folder for each, config in
                                               zip(data, content.dataset.configs, strict=True)},
        is_same_run=content.cached is not None and all(
            file.path for role, file in content.models.items() if file.id))
    (job / README_FILE).write_text(readme(told), encoding="utf-8", newline="\n")


def _told(file: ModelFile) -> dict:
    known = asdict(digests.of(file.path)) if file.path else {}
    return {"name": file.name, **known, **({"id": file.id} if file.id else {})}


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _linked(source: Path, target: Path) -> None:
    """Files of the cache are replaced and never written into, so that a second name for the same bytes is a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
