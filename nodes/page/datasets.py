"""Routes for the contact sheet in Load Dataset (web/sheet/), which shows what will be trained on before it is queued.

They list folders, report on a dataset, send thumbnails and save captions.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

from ...trainer.base.errors import UserError, content_hash, printable
from ...trainer.data import buckets, caption_edit, folder, report, thumbnails
from ...trainer.data import scan as scanning
from ...trainer.data.caption_files import CaptionFiles
from ...trainer.data.folder import Entry
from ...trainer.data.manifest import Sample
from ...trainer.data.notes import Notes
from ...trainer.model import families
from ...trainer.settings.data import DatasetConfig, parse_resolutions
from ..backend import paths
from . import places
from .asking import Asked, Bytes, Door, NotFound

SECONDS_A_LOOK = 1.5
"""After which an unfinished scan is answered with its progress; the page asks again, and others are served between."""

MAX_SHEETS = 8
"""Datasets whose thumbnails can be requested, the latest ones."""

MAX_SCANS = 2
"""Unfinished scans that are kept, the latest ones."""

MAX_FOLDERS = 2000
"""In one answer of the folder picker."""

MAX_COUNTED = 50_000
"""Files that are counted for one answer of the folder picker."""

DAY = 24 * 3600

_TEXTS = ("frame_buckets", "more_resolutions", "model")
"""Widgets whose text is read into what DatasetConfig holds."""

_Thumbnail = tuple[Sample, int, bool]

_sheets: OrderedDict[str, dict[str, _Thumbnail]] = OrderedDict()
"""sheets[state][key] is a thumbnail that can be requested; `state` is a hash of a dataset as it was answered.

Like _scans it is used by the one slow thread alone, so there is no lock."""

_scans: OrderedDict[str, Iterator] = OrderedDict()
"""Unfinished scans by the state of their dataset."""


def register(door: Door) -> None:
    """Add the routes."""
    door.get("/wantune/folders", _folders, quick=False)
    door.get("/wantune/dataset", _dataset, quick=False)
    door.get("/wantune/thumbnail", _thumbnail, quick=False)
    door.post("/wantune/caption", _save_caption, quick=False)  # it lists the folder, for which Stop must not wait


def _folders(asked: Asked) -> dict:
    """The subfolders of a folder that the page may read; without a path, the root folders."""
    may_read = places.reader(asked.user)
    roots = [{"name": root.name, "value": places.shown(Path(root.path)), "files": None}
             for root in places.roots(asked.user) if printable(root.path) == root.path]
    text = asked.text("path", "").strip()
    if not text:
        return {"path": "", "title": "", "parent": None, "folders": roots, "roots": roots, "left_out": 0}
    path = places.inside(text, asked.user)
    with os.scandir(path) as found:
        inner = sorted((Path(entry.path) for entry in found if _is_shown(entry) and may_read(
            os.path.realpath(entry.path))), key=lambda each: each.name.lower())
    budget = iter(range(MAX_COUNTED))
    return {
        "path": places.shown(path),
        "title": str(path),
        "parent": places.shown(path.parent) if may_read(str(path.parent)) else "",
        "files": _count_media(path, budget),
        "folders": [{"name": each.name, "value": places.shown(each), "files": _count_media(each, budget)}
                    for each in inner[:MAX_FOLDERS]],
        "roots": roots,
        "left_out": max(0, len(inner) - MAX_FOLDERS),
    }


def _is_shown(entry: os.DirEntry) -> bool:
    with suppress(OSError):
        # an address cannot hold a name that is not UTF-8
        return not entry.name.startswith(".") and printable(entry.name) == entry.name and entry.is_dir()
    return False


def _count_media(path: Path, budget: Iterator[int]) -> int | None:
    """The number of pictures and clips directly in a folder; None if it is unreadable or `budget` is used up."""
    with suppress(OSError), os.scandir(path) as found:
        names = [entry.name for entry, _ in zip(found, budget, strict=False)]
        if next(budget, None) is not None:
            return sum(os.path.splitext(name)[1].lower() in folder.SUFFIXES for name in names)
    return None


def _dataset(asked: Asked) -> dict:
    """The dataset that the widgets of Load Dataset choose: its report as JSON, with thumbnail keys and captions.

    {"same": true} if nothing changed since the state `known`; {"progress"} while the files are read for the first
    time; an "error" beside the files if the dataset cannot be used. With `gently` a folder that cannot be read is
    answered with status 200 and an "error", too: browsers log each error status in their console, and a folder is
    often missing while its name is typed.
    """
    try:
        return _sheet(asked)
    except UserError as error:
        if asked.text("gently", ""):
            return {"error": str(error), "files": [], "totals": None, "notes": []}
        raise


def _sheet(asked: Asked) -> dict:
    text = asked.text("config")
    config = _config(text, asked.user)
    may_read = places.reader(asked.user)
    entries = list(folder.walk(Path(config.folder), Notes(), may_read))
    state = content_hash(asked.user, config.folder, text, folder.fingerprint(entries))
    if asked.text("known", "") == state and state in _sheets:
        _sheets.move_to_end(state)
        return {"state": state, "same": True}
    scan = _scans.pop(state, None) or scanning.scanning(config, paths.scans_folder(), may_read)
    found: dict[str, _Thumbnail] = {}
    try:
        manifest = _look(scan)
        if isinstance(manifest, scanning.ScanProgress):
            _put(_scans, state, scan, MAX_SCANS)
            return {"progress": {"done": manifest.done, "total": manifest.total, "name": manifest.name}}
        answer = report.to_json(manifest, lambda sample: _thumbnails(sample, found))
    except UserError as error:
        rejected, notes = getattr(error, "rejected", ()), getattr(error, "notes", ())
        answer = {"error": str(error), "folders": [printable(config.folder)],
                  "trigger_word": config.trigger_word.strip(), "files": report.left_out(rejected), "totals": None,
                  "notes": list(notes)}
    _add_texts(answer["files"], entries)
    _put(_sheets, state, found, MAX_SHEETS)
    return {"state": state, **answer}


def _put(kept: OrderedDict, key: str, value: object, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        _, dropped = kept.popitem(last=False)
        if hasattr(dropped, "close"):
            dropped.close()  # saves what was read so far


def _look(scan: Iterator) -> object:
    """The Manifest of a scan, or its ScanProgress when SECONDS_A_LOOK are over."""
    end = time.monotonic() + SECONDS_A_LOOK
    while True:
        try:
            progress = next(scan)
        except StopIteration as finished:
            return finished.value
        if time.monotonic() > end:
            return progress


def _thumbnails(sample: Sample, found: dict[str, _Thumbnail]) -> dict:
    start = sample.starts[0]
    kinds = {"thumbnail": False} if sample.source is None else {"thumbnail": False, "moving": True}
    keys = {kind: thumbnails.key_of(sample, start, is_moving) for kind, is_moving in kinds.items()}
    found.update({keys[kind]: (sample, start, is_moving) for kind, is_moving in kinds.items()})
    return keys


def _add_texts(files: list[dict], entries: list[Entry]) -> None:
    """Adds to each picture and clip its caption as it stands in the file, without the trigger word put before it."""
    texts, media = CaptionFiles.among(entries, Notes()), {entry.name: entry for entry in entries if entry.is_media}
    for file in files:
        if file["file"] in media:
            with suppress(UserError):  # then it is among the files left out, with this error as its reason
                text, own, listed_in = texts.written(media[file["file"]])
                file.update(text=text, text_file=own.name if own else None, listed_in=listed_in or None)


@cache
def _shelf(path: Path) -> thumbnails.Shelf:
    return thumbnails.Shelf(path)


def _thumbnail(asked: Asked) -> Bytes:
    """The WebP of a key from one of the last answers; the page sends keys here, never paths."""
    key = asked.text("id")
    known = next((sheet[key] for sheet in reversed(_sheets.values()) if key in sheet), None)
    if known is None:
        raise NotFound("This thumbnail is not known (any more); reload the sheet.")
    sample, start, is_moving = known
    may_read = places.reader(asked.user)
    files = [sample.path, *([sample.mask.path] if sample.mask else [])]
    if not all(may_read(os.path.realpath(path)) for path in files):
        raise NotFound("This thumbnail is not known (any more); reload the sheet.")
    shelf = _shelf(paths.cache_folder() / "thumbs")
    return Bytes(shelf.get(key, lambda: thumbnails.make(sample, start, is_moving)), "image/webp", DAY)


def _save_caption(asked: Asked) -> dict:
    """Write the caption beside a picture or clip, whose name is looked up in the folder's listing."""
    root = places.inside(asked.text("folder"), asked.user)
    name, text, before = asked.text("file"), asked.text("text"), asked.text("before")
    entries = list(folder.walk(root, Notes(), places.reader(asked.user)))
    entry = next((entry for entry in entries if entry.is_media and entry.name == name), None)
    if entry is None:
        raise NotFound(f"There is no picture or clip {name[:200]!r} in this folder (any more).")
    texts = CaptionFiles.among(entries, Notes())
    path = caption_edit.save(entry, texts, text, before)
    return {"saved": printable(path.name), "text": text.strip()}


def _config(text: str, user: str) -> DatasetConfig:
    """The DatasetConfig of the widgets' values, which the page sends as JSON.

    Raises:
        UserError: the values are not such as the widgets hold, or the page may not read the folder.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("config is not JSON; send the values of the widgets.") from None
    settings = values.pop("settings", None) if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(settings, dict | None):
        raise UserError("config is no JSON object; send the values of the widgets.")
    given = {**values, **(settings or {})}
    where = given.pop("folder", "")
    kinds = {**{field.name: type(field.default) for field in fields(DatasetConfig) if field.name not in (
        "folder", "family")}, **dict.fromkeys(_TEXTS, str)}
    for name, value in given.items():
        if name not in kinds:
            raise UserError(f"config has {name[:100]!r}, which Load Dataset does not have; reload the page.")
        if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int):
            raise UserError(f"{name} is {str(value)[:100]!r}; it takes a {kinds[name].__name__}.")
    if not isinstance(where, str):
        raise UserError("folder is no text; give the folder that holds your pictures, for example my_pictures.")
    real = places.inside(where, user)
    family = families.of_dataset(given.pop("model")) if "model" in given else families.DEFAULT
    parses = {"frame_buckets": partial(buckets.read_frames, family=family), "more_resolutions": parse_resolutions}
    parsed = {name: parse(given[name]) for name, parse in parses.items() if name in given}
    return DatasetConfig(folder=str(real), family=family.name, **{**given, **parsed})
