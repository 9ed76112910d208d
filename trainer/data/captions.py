"""From the texts of a dataset folder to the captions that are encoded.

A file's own `.txt` comes first, then `captions.json` (file name -> caption or list of captions) and
`metadata.jsonl` (one object per line), which apply to their folder and its subfolders.
"""

from __future__ import annotations

import codecs
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ..base.errors import UserError
from ..model.family import ModelFamily
from ..settings.data import DatasetConfig
from .folder import CAPTION_FILES, Entry, key_of, stem_of
from .notes import Notes

TAG_ORDERS = 8
"""Number of orders of a caption's tags, which visits take in turn: each is one text in the cache."""

MIN_TAGS = 3
"""Comma-separated parts from which on a caption is a list of tags."""

_PLACEHOLDER = "[trigger]"
_NAME_KEYS = ("file_name", "file", "image_path", "video_path", "path", "image", "video")
_TEXT_KEYS = ("text", "captions", "caption", "prompt")
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_LETTER = rf"[^\W{_IDEOGRAPHS}]"
"""A letter of an alphabetic script, or a digit: next to one, a match would be a part of a longer word. Ideographs are
not in it, since they are written without spaces between words."""


class CaptionFiles:
    """All texts of a dataset folder.

    `read` returns captions on one line each, `written` the text as it stands in the file; `unused` lists those whose
    picture or clip was never asked for.
    """

    def __init__(self, texts: Iterable[Entry], lists: Iterable[Entry], notes: Notes) -> None:
        self._texts = {stem_of(entry.name): entry for entry in texts}
        self._notes = notes
        self._listed: dict[str, tuple[int, str, list[str]]] = {}
        self._asked: set[str] = set()
        self._asked_texts: set[str] = set()
        # inner folders win, and captions.json over metadata.jsonl
        order = sorted(lists, key=lambda entry: (entry.name.count("/"), entry.suffix == ".json", entry.name))
        for rank, entry in enumerate(order):
            for name, captions in _read_list(entry, notes):
                full = key_of(str(PurePosixPath(entry.name).parent / key_of(name)))
                self._listed[full] = (rank, entry.name, captions)

    @classmethod
    def among(cls, entries: Iterable[Entry], notes: Notes) -> CaptionFiles:
        """The caption files among all files of a dataset folder."""
        entries = list(entries)
        return cls([entry for entry in entries if entry.suffix == ".txt"],
                   [entry for entry in entries if entry.path.name.lower() in CAPTION_FILES], notes)

    def read(self, entry: Entry) -> list[str]:
        """The captions of a picture or clip, each on one line; empty if there are none.

        Raises:
            UserError: the caption cannot be read.
        """
        _, source, listed = self._listing(entry)
        self._asked.update((key_of(entry.name), stem_of(entry.name)))
        self._asked_texts.add(stem_of(entry.name))
        text = self._texts.get(stem_of(entry.name))
        own = _one_line(decode(text, self._notes)) if text else ""
        if own and listed and listed != [own]:
            self._notes.add(entry.name, f"has captions in its .txt and in {source}; the .txt is used.")
        return [own] if own else listed

    def written(self, entry: Entry) -> tuple[str, Entry | None, str]:
        """(the caption as it stands in its file, its .txt, the name of the list file that has captions for it).

        "" and None stand for what is missing.

        Raises:
            UserError: the .txt cannot be read.
        """
        text = self._texts.get(stem_of(entry.name))
        _, source, listed = self._listing(entry)
        content = decode(text, self._notes) if text else ""
        return content if content.strip() or not listed else listed[0], text, source

    def unused(self) -> Iterator[tuple[str, str]]:
        """(name, remark) of captions without a picture or clip."""
        for stem, entry in self._texts.items():
            if stem not in self._asked_texts:
                yield entry.name, "a caption without its picture; add the picture or delete it."
        for key, (_, source, _) in self._listed.items():
            if key not in self._asked:
                yield key, f"named in {source}, but there is no such picture or clip; correct the name."

    def _listing(self, entry: Entry) -> tuple[int, str, list[str]]:
        """(precedence, name, captions) of the list file that applies to a picture or clip."""
        found = [self._listed[key] for key in (key_of(entry.name), stem_of(entry.name)) if key in self._listed]
        return max(found, key=lambda each: each[0], default=(0, "", []))


def finished(
    written: list[str], entry: Entry, config: DatasetConfig, family: ModelFamily, notes: Notes
) -> tuple[str, ...]:
    """The captions as they are encoded, with trigger word and orders of tags.

    Raises:
        UserError: no caption was written, and config.caption_fallback gives none.
    """
    trigger = config.trigger_word.strip()
    texts = written or _fallback(entry, config, notes)
    captions = [_with_trigger(text, trigger, entry, config, notes) for text in texts]
    for caption in captions:
        if estimate_tokens(caption) > family.text_length:
            notes.add(entry.name, f"its caption has more than {family.text_length} tokens, which {family.series} was "
                      "not trained on; shorten it.")
    captions = list(dict.fromkeys(captions))
    if config.shuffle_tags:
        captions = _in_turn([_tag_orders(caption, trigger) for caption in captions])
    return tuple(captions)


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger word occurs in the caption as a word of its own ("art" is not in "party")."""
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, trigger) else ""
    after = rf"(?!{_LETTER})" if re.search(rf"{_LETTER}$", trigger) else ""
    return re.search(before + re.escape(trigger) + after, caption) is not None


def estimate_tokens(caption: str) -> int:
    """Estimated number of UMT5 tokens, for when no text encoder is loaded yet.

    4/3 for each word of an alphabetic script, one for each punctuation mark and each character of Chinese, Japanese or
    Korean, and one for the end.
    """
    ideographs = len(_IDEOGRAPH.findall(caption))
    rest = _IDEOGRAPH.sub(" ", caption)
    return 1 + ideographs + len(re.findall(r"\w+", rest)) * 4 // 3 + len(re.findall(r"[^\w\s]", rest))


def decode(entry: Entry, notes: Notes) -> str:
    """The text of a file in whatever encoding an editor left it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = entry.path.read_bytes()
    except OSError as error:
        raise UserError(f"{entry.name} cannot be read ({error.strerror}); check its permissions.") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        notes.add(entry.name, "was read as UTF-16; save it as UTF-8 if it looks wrong.")
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.add(entry.name, "is not UTF-8 and was read as Latin-1; save it as UTF-8 if it looks wrong.")
        return data.decode("latin-1")


def _fallback(entry: Entry, config: DatasetConfig, notes: Notes) -> list[str]:
    trigger, stem = config.trigger_word.strip(), Path(entry.name).stem
    if config.caption_fallback == "file name":
        notes.add(entry.name, "has no caption; its name is taken for one.")
        return [stem]
    if config.caption_fallback == "leave out" or not trigger:
        remedy = "" if config.caption_fallback == "leave out" else ", or set trigger_word"
        raise UserError(f"{entry.name} has no caption; write one into {stem}.txt{remedy}.")
    notes.add(entry.name, f'has no caption; it is captioned "{trigger}", write more into a .txt of the same name.')
    return [trigger]


def _with_trigger(text: str, trigger: str, entry: Entry, config: DatasetConfig, notes: Notes) -> str:
    if _PLACEHOLDER in text:
        if not trigger:
            notes.add(entry.name, f"its caption has {_PLACEHOLDER}, and trigger_word is empty; set it.")
            return text
        text = text.replace(_PLACEHOLDER, trigger)
    if not trigger or has_trigger(text, trigger):
        return text
    if not config.prepend_trigger:
        notes.add(entry.name, f'its caption lacks the trigger word "{trigger}"; write it in, or switch '
                  "prepend_trigger on.")
        return text
    notes.add(entry.name, f'its caption lacks the trigger word; "{trigger}" was put in front of it.')
    return f"{trigger}, {text}"


def _tag_orders(caption: str, trigger: str) -> list[str]:
    whole = caption.replace(trigger, _PLACEHOLDER) if trigger else caption  # a trigger word may contain commas
    tags = [tag.strip().replace(_PLACEHOLDER, trigger) for tag in whole.split(",") if tag.strip()]
    if len(tags) < MIN_TAGS:
        return [caption]
    first = [tag for tag in tags if trigger and has_trigger(tag, trigger)][:1]
    rest = list(tags)
    for tag in first:
        rest.remove(tag)
    draw = random.Random(caption)
    orders = [", ".join([*first, *rest])]
    for _ in range(4 * TAG_ORDERS):  # bounded, since short lists have fewer than TAG_ORDERS orders
        order = ", ".join([*first, *draw.sample(rest, len(rest))])
        if order not in orders:
            orders.append(order)
    return orders[:TAG_ORDERS]


def _in_turn(orders: list[list[str]]) -> list[str]:
    """Interleaves the orders of several captions, so that visits alternate between the captions."""
    longest = max(len(order) for order in orders)
    return [order[i % len(order)] for i in range(longest) for order in orders]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_list(entry: Entry, notes: Notes) -> Iterator[tuple[str, list[str]]]:
    """(file name, captions) of a captions.json or metadata.jsonl; what is wrong in it is noted, the rest is used."""
    try:
        text = decode(entry, notes)
    except UserError as error:
        notes.add(entry.name, str(error))
        return
    if entry.suffix == ".jsonl":
        pairs = _jsonl(entry, text, notes)
    else:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            notes.add(entry.name, f"is not valid JSON ({error}), so its captions are not used; correct it.")
            return
        if not isinstance(content, dict):
            notes.add(entry.name, 'must hold one object, {"file name": "caption", ...}; it is not used.')
            return
        pairs = content.items()
    for name, value in pairs:
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            notes.add(entry.name, f"what it says of {name} is neither a caption nor a list of captions; correct it.")
            continue
        if lines := [_one_line(caption) for caption in captions if caption.strip()]:
            yield name, lines


def _jsonl(entry: Entry, text: str, notes: Notes) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        name = _first(content, _NAME_KEYS)
        if not isinstance(name, str):
            notes.add(entry.name, f'line {number} is not {{"file_name": ..., "text": ...}}; correct it.')
            continue
        yield name, _first(content, _TEXT_KEYS)


def _first(content: object, keys: tuple[str, ...]) -> object:
    if not isinstance(content, dict):
        return None
    return next((content[key] for key in keys if key in content), None)
