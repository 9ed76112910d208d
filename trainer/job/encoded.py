"""A CachedDataset as JSON with the paths of its files relative to their cache, so that the cache may lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from ..base.errors import UserError, content_hash
from ..data.buckets import Bucket
from ..data.manifest import Manifest, Rejection
from ..encoded.cache import CachedDataset, CachedSample
from ..model import families

_PATHS = ("latent_paths", "captions", "windows", "mask_path", "empty_caption", "prior_captions")
"""Fields of CachedSample that hold paths, alone, in tuples or by kind."""


def to_json(cached: CachedDataset) -> dict:
    """Plain data, from which `from_json` makes the same again; of files that were left out, the names."""
    rest = {name: getattr(cached, name) for name in (
        "digest", "former_digest", "prior_digest", "trigger_word", "condition", "notes", "captions")}
    return {**rest, "family": cached.family.name,
            "samples": [_sample(each) for each in cached.samples],
            "held_out": [_sample(each) for each in cached.held_out],
            "left_out": [[rejection.name, rejection.reason] for rejection in cached.left_out]}


def from_json(told: Mapping, folder: Path) -> CachedDataset:
    """The dataset whose cache files lie in `folder`.

    Raises:
        UserError: a part is missing, or a path leads out of the folder.
    """
    def sample(each: Mapping) -> CachedSample:
        paths = {name: _mapped(each[name], lambda text: _inside(folder, text)) for name in _PATHS}
        return CachedSample(**{**each, **paths, "bucket": Bucket(**each["bucket"])})

    try:
        return CachedDataset(**{
            **told, "family": families.named(told["family"]), "notes": tuple(told["notes"]),
            "captions": tuple(told["captions"]), "samples": tuple(map(sample, told["samples"])),
            "held_out": tuple(map(sample, told["held_out"])),
            "left_out": tuple(Rejection(Path(name), name, reason) for name, reason in told["left_out"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The list of the cache in {folder} is damaged ({type(error).__name__}: {error}); copy the job "
                        "again.") from None


def files(cached: CachedDataset) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of each file of the cache, once."""
    paths = dict.fromkeys(path for sample in (*cached.samples, *cached.held_out) for path in sample.paths)
    for path in paths:
        yield _relative(path), path


def check_belongs(cached: CachedDataset, dataset: Manifest) -> None:
    """UserError where a cache is not that of a dataset."""
    contents = [{content_hash(sample.content) for sample in samples}
                for samples in (dataset.samples, dataset.held_out)]
    cached_contents = [{sample.content for sample in samples} for samples in (cached.samples, cached.held_out)]
    if not (cached_contents[0] <= contents[0] and cached_contents[1] <= contents[1]):
        raise UserError("The cache is that of another dataset, or of other settings of it; connect the Cache Latents "
                        "of the dataset that is exported.")


def _sample(sample: CachedSample) -> dict:
    plain = replace(sample, **{name: _mapped(getattr(sample, name), _relative) for name in _PATHS})
    return asdict(plain)


def _mapped(value: object, change):
    """A path, or all paths in tuples and mappings."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {kind: change(path) for kind, path in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_mapped(each, change) for each in value)
    return change(value)


def _relative(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"  # as Store.path makes them


def _inside(folder: Path, text: str) -> Path:
    parts = PurePosixPath(text).parts
    if len(parts) != 2 or ".." in parts or any(sign in text for sign in "\\:"):
        raise UserError(f"The cache in {folder} names a file {text!r} that does not lie in it; do not use this job.")
    return folder / text
