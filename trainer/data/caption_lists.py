"""Files that hold the captions of several pictures or clips, as JSON, JSON lines or CSV, and which files they mean."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from ..base.errors import UserError, printable
from .folder import Entry, key_of
from .notes import Notes

_NAME_KEYS = ("file_name", "file", "image_path", "video_path", "path", "image", "video", "file_path", "filename",
              "media_path")
_TEXT_KEYS = ("text", "captions", "caption", "prompt")
_ABSOLUTE = re.compile(r"/|[a-z]+:/", re.IGNORECASE)


def one_line(text: str) -> str:
    """A caption as it is encoded, on one line."""
    return " ".join(text.split())


def read(entry: Entry, text: str, notes: Notes) -> list[tuple[str, list[str]]]:
    """(file name, captions) of such a file; what is wrong in some of it is noted, and the rest used.

    Raises:
        UserError: nothing of it can be used; the sentence goes on after the file's name.
    """
    parts = {".jsonl": _lines, ".csv": _rows}.get(entry.suffix, _json)(entry, text, notes)
    found = []
    for name, value in parts:
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            notes.add(entry.name, f"what it says of {name} is neither a caption nor a list of captions; correct it.")
        elif any(printable(caption) != caption for caption in captions):
            notes.add(entry.name, f"what it says of {name} holds half a character; correct it.")
        elif lines := [one_line(caption) for caption in captions if caption.strip()]:
            found.append((name, lines))
    return found


def located(entry: Entry, names: Iterable[str], media: set[str], notes: Notes) -> dict[str, str]:
    """The keys (`key_of`, relative to the dataset folder) that the names in a file of captions mean, by name.

    A name is relative to the file's own folder, or begins with the end of that folder's path, or is absolute: then it
    is the one that this folder gives it, or, where the folder was elsewhere, on Windows or not, the longest end of it
    that there is. Of folders that all have a file of that name the one counts of which most are here.

    Args:
        media: keys of all pictures and clips.
    """
    keys, moved, around = {}, [], _path(str(entry.path.parent))
    parent = key_of(entry.name).rpartition("/")[0]
    for name in dict.fromkeys(names):
        key, prefix = _locate(_path(name), f"{parent}/" if parent else "", around, media)
        if prefix is None:
            keys[name] = key
        else:
            moved.append((name, key, prefix))
    if not moved:
        return keys
    num_files = Counter(prefix for _, _, prefix in moved)
    here = {around, _path(os.path.realpath(entry.path.parent))} & num_files.keys()
    taken: dict[str, str] = {}
    for name, key, prefix in sorted(moved, key=lambda each: (each[2] not in here, -num_files[each[2]])):
        is_taken = taken.setdefault(key, prefix) != prefix or (here and prefix not in here)
        keys[name] = _path(name) if is_taken else key
    if not here:
        notes.add(entry.name, f"has paths of another place, such as {moved[0][0]}; each means the file here that the "
                  "path ends with.")
    return keys


def _locate(name: str, inner: str, around: str, media: set[str]) -> tuple[str, str | None]:
    """(key, the folder before it where the name is absolute and a file was found)

    Args:
        inner: begins the keys of what lies in the list's folder.
        around: the path of that folder.
    """
    is_absolute = _ABSOLUTE.match(name) is not None
    inside = posixpath.normpath(posixpath.join(around, name)).removeprefix(f"{around}/")
    plain = posixpath.normpath(inner + name)
    for key in (inner + inside, plain):
        if key in media:
            return key, around if is_absolute else None
    parts = [part for part in name.split("/") if part]
    above = [part for part in around.split("/") if part]
    for start in range(not is_absolute, len(parts)):
        end = "/".join(parts[start:])
        if inner + end in media and (is_absolute or parts[:start] == above[-start:]):
            return inner + end, name[:-len(end) - 1] if is_absolute else None
    return name if is_absolute else plain, None


def _path(name: str) -> str:
    return posixpath.normpath(key_of(name))


def _json(entry: Entry, text: str, notes: Notes) -> Iterable[tuple[str, object]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid JSON ({error}), so its captions are not used; correct it.") from None
    if isinstance(content, dict):
        return content.items()
    if isinstance(content, list) and any(isinstance(each, dict) for each in content):
        return _named(entry, ((f"entry {number}", each) for number, each in enumerate(content, 1)), notes)
    raise UserError('must hold one object, {"file name": "caption", ...}; it is not used.')


def _lines(entry: Entry, text: str, notes: Notes) -> Iterator[tuple[str, object]]:
    return _named(entry, ((f"line {number}", _parsed(line)) for number, line in enumerate(text.split("\n"), 1)
                          if line.strip()), notes)


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _rows(entry: Entry, text: str, notes: Notes) -> Iterator[tuple[str, object]]:
    head = text.lstrip().partition("\n")[0].lower()
    separator = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"is not valid CSV ({error}), so its captions are not used; correct it.") from None
    titles = [title.strip().lower() for title in rows[0]] if rows else []
    if not {*titles} & {*_NAME_KEYS} or not {*titles} & {*_TEXT_KEYS}:
        raise UserError("must begin with a line such as file_name,text; it is not used.")
    return _named(entry, ((f"row {number}", dict(zip(titles, row, strict=False)))
                          for number, row in enumerate(rows[1:], 2) if any(row)), notes)


def _named(entry: Entry, objects: Iterable[tuple[str, object]], notes: Notes) -> Iterator[tuple[str, object]]:
    for where, content in objects:
        name = _first(content, _NAME_KEYS)
        if not isinstance(name, str) or not name.strip():
            notes.add(entry.name, f'{where} is not {{"file_name": ..., "text": ...}}; correct it.')
            continue
        yield name, _first(content, _TEXT_KEYS)


def _first(content: object, keys: tuple[str, ...]) -> object:
    if not isinstance(content, dict):
        return None
    return next((content[key] for key in keys if key in content), None)
