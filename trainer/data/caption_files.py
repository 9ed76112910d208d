"""All texts of a dataset folder: which caption counts for which picture or clip.

The first of these that is not empty counts: `a.txt`, `a.caption`, `a.png.txt`, `a.png.caption`, and then the files that
hold several captions (folder.CAPTION_FILES), which apply to their folder and its subfolders: those of inner folders
first, and in a folder captions before metadata.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath

from ..base.errors import UserError
from . import caption_lists, encodings
from .caption_lists import one_line
from .encodings import Encodings
from .folder import CAPTION_FILES, CAPTION_SUFFIXES, SUFFIXES, Entry, key_of, stem_of
from .notes import Notes

MAX_BYTES = 2**20
"""Of a file that holds one caption; a larger one is something else."""


class CaptionFiles:
    """All texts of a dataset folder.

    `read` returns captions on one line each, `written` the text as it stands in the file; `unused` lists those whose
    picture or clip was never asked for.
    """

    def __init__(self, texts: Iterable[Entry], lists: Iterable[Entry], media: Iterable[Entry], notes: Notes) -> None:
        self._texts = {(stem_of(entry.name), entry.suffix): entry for entry in texts}
        order = {name: -number for number, name in enumerate(CAPTION_FILES)}
        self._lists = sorted(lists, key=lambda each: (each.name.count("/"), order[each.path.name.lower()]))
        self._notes = notes
        self._encodings: Encodings | None = None
        self._data: dict[str, bytes] = {}
        self._listed: dict[str, tuple[int, str, list[str]]] = {}
        self._unfit: list[str] = []
        self._broken: list[str] = []
        self._asked: set[str] = set()
        self._asked_texts: set[tuple[str, str]] = set()
        keys = {key for entry in media for key in (key_of(entry.name), stem_of(entry.name))}
        for rank, entry in enumerate(self._lists):
            self._take(rank, entry, keys)

    @classmethod
    def among(cls, entries: Iterable[Entry], notes: Notes) -> CaptionFiles:
        """The caption files among all files of a dataset folder."""
        entries = list(entries)
        return cls([entry for entry in entries if entry.suffix in CAPTION_SUFFIXES],
                   [entry for entry in entries if entry.path.name.lower() in CAPTION_FILES],
                   [entry for entry in entries if entry.is_media], notes)

    def check(self) -> None:
        """Raises UserError if a file of several captions has none for any picture or clip."""
        for sentence in self._unfit:
            raise UserError(sentence)

    def read(self, entry: Entry) -> list[str]:
        """The captions of a picture or clip, each on one line; empty if there are none.

        Raises:
            UserError: the caption cannot be read.
        """
        _, source, listed = self._listing(entry)
        self._asked.update((key_of(entry.name), stem_of(entry.name)))
        found = [(f"its {_ending(text, entry)}", [own]) for text, content in self._contents(entry)
                 if (own := one_line(content))]
        if listed:
            found.append((source, listed))
        if not found:
            self._check_broken(entry)
            return []
        used, captions = found[0]
        for other, texts in found[1:]:
            if texts != captions:
                self._notes.add(entry.name, f"has captions in {used} and in {other}; the {used.split()[-1]} is used.")
        return captions

    def written(self, entry: Entry) -> tuple[str, Entry | None, str]:
        """(the caption as it stands in its file, its own file, what else has captions for it).

        "" and None stand for what is missing.

        Raises:
            UserError: a file cannot be read.
        """
        _, source, listed = self._listing(entry)
        texts = self._contents(entry)
        full = [(text, content) for text, content in texts if content.strip()]
        others = [text.name for text, _ in full[1:]] + [source] * bool(source)
        if full:
            text, content = full[0]
            return content, text, others[0] if others else ""
        return listed[0] if listed else "", texts[0][0] if texts else None, source

    def unused(self) -> Iterator[tuple[str, str]]:
        """(name, remark) of captions without a picture or clip."""
        for key, entry in self._texts.items():
            if key not in self._asked_texts:
                yield entry.name, "a caption without its picture; add the picture or delete it."
        for key, (_, source, _) in self._listed.items():
            if key not in self._asked:
                yield key, f"named in {source}, but there is no such picture or clip; correct the name."

    def encoded(self, own: Entry | None, text: str) -> bytes:
        """A caption as UTF-8, with a mark where it would be read as something else beside the others."""
        data = text.encode()
        if encodings.certain(data) is None:
            with suppress(UserError):
                is_read_so = self._find_out(own.name if own else "", data)[0] == text
                return data if is_read_so else codecs.BOM_UTF8 + data
            return codecs.BOM_UTF8 + data
        return data

    def _contents(self, entry: Entry) -> list[tuple[Entry, str]]:
        """(file, text) of the files that hold the caption of this picture or clip alone, the one that counts first."""
        keys = [(stem, suffix) for stem in (stem_of(entry.name), key_of(entry.name)) for suffix in CAPTION_SUFFIXES]
        self._asked_texts.update(keys)
        found = []
        for text in (self._texts[key] for key in keys if key in self._texts):
            try:
                found.append((text, self._decode(text)))
            except UserError as error:
                if not any(content.strip() for _, content in found):
                    raise UserError(f"The caption of {entry.name} cannot be read: {error}") from None
                self._notes.add(text.name, str(error))
        return found

    def _listing(self, entry: Entry) -> tuple[int, str, list[str]]:
        """(precedence, name, captions) of the file of several captions that applies to a picture or clip."""
        found = [self._listed[key] for key in (key_of(entry.name), stem_of(entry.name)) if key in self._listed]
        return max(found, key=lambda each: each[0], default=(0, "", []))

    def _take(self, rank: int, entry: Entry, keys: set[str]) -> None:
        """Add the captions of a file of several; `keys` are those of all pictures and clips."""
        try:
            found = caption_lists.read(entry, self._decode(entry), self._notes)
        except UserError as error:
            if not self._may_be_foreign(entry):
                self._broken.append(entry.name)
            self._notes.add(entry.name, str(error))
            return
        if self._may_be_foreign(entry) and not any(_is_of_media(name) for name, _ in found):
            self._notes.add(entry.name, "holds no captions of pictures or clips; it is not used.")
            return
        meant = caption_lists.located(entry, [name for name, _ in found], keys, self._notes)
        self._listed.update({meant[name]: (rank, entry.name, captions) for name, captions in found})
        if found and keys and not any(key in keys for key in meant.values()):
            name = found[0][0]
            self._unfit.append(f"{entry.path} has captions for {len(meant)} files, and none of them is in this folder: "
                               f"the first is called {name}, and {meant[name]} was looked for; correct the names, or "
                               "delete that file.")

    @staticmethod
    def _may_be_foreign(entry: Entry) -> bool:
        """Whether other programs use this name for something else than captions."""
        return entry.path.name.lower() == "metadata.json"

    def _check_broken(self, entry: Entry) -> None:
        """Raises UserError for a picture or clip whose caption may stand in a file that could not be read."""
        for name in self._broken:
            if PurePosixPath(name).parent in PurePosixPath(entry.name).parents:
                raise UserError(f"{entry.name} has no caption of its own, and {name} cannot be read; correct that.")

    def _decode(self, entry: Entry) -> str:
        """The text of a file in whatever encoding an editor left it.

        Raises:
            UserError: it cannot be read.
        """
        data = self._read(entry)
        text = encodings.certain(data)
        if text is not None:
            return text
        text, title = self._find_out(entry.name, data)
        if title:
            self._notes.add(entry.name, f"is not UTF-8 and was read as {title}; save it as UTF-8 if it looks wrong.")
        return text

    def _find_out(self, name: str, data: bytes) -> tuple[str, str]:
        if self._encodings is None:
            self._encodings = Encodings(self._all())
        return self._encodings.read(name, data)

    def _all(self) -> dict[str, bytes]:
        for entry in (*self._texts.values(), *self._lists):
            try:
                self._data[entry.name] = self._read(entry)
            except UserError:
                continue  # said when it is its turn
        return self._data

    def _read(self, entry: Entry) -> bytes:
        if entry.name in self._data:
            return self._data[entry.name]
        try:
            if entry.suffix in CAPTION_SUFFIXES and entry.path.stat().st_size > MAX_BYTES:
                raise UserError(f"{entry.name} has more than 1 MiB, which is no caption; delete or rename it.")
            return entry.path.read_bytes()
        except OSError as error:
            raise UserError(f"{entry.name} cannot be read ({error.strerror}); check its permissions.") from None


def _is_of_media(name: str) -> bool:
    return PurePosixPath(key_of(name)).suffix.lower() in SUFFIXES


def _ending(text: Entry, entry: Entry) -> str:
    """".txt" of a.txt, and ".png.txt" of a.png.txt."""
    return text.name[len(PurePosixPath(entry.name).with_suffix("").as_posix()):]
