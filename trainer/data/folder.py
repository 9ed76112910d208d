"""Lists the files of a dataset folder and its subfolders."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

from ..base.errors import UserError, content_hash, printable
from ..base.files import Stamp
from . import pictures, video
from .notes import Notes

SUFFIXES = pictures.SUFFIXES | video.SUFFIXES

FORMATS = "jpg, png, webp, avif, bmp, tiff, gif, mp4, mov, mkv, webm or avi"

MASKS = "masks"
"""Name of the folders that hold masks."""

CONTROLS = "control"
"""Name of the folders that hold control clips."""

CAPTION_SUFFIXES = (".txt", ".caption")
"""Of a file that holds the caption of one picture or clip, the one that counts first; .caption is kohya's default."""

CAPTION_FILES = ("captions.json", "metadata.json", "captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")
"""Names of files that hold the captions of several."""

MAX_REPEATS = 200
"""A folder called 2024_holiday means a year, not repeats."""

BACKUP = re.compile(r"\.(txt|caption)\.bak\d*$", re.IGNORECASE)
"""How the names of the backups end that caption_edit.py makes of a caption's earlier texts."""

LEADS_OUT = ("a link to somewhere that the page may not read; it is left out of the sheet, and used when queued "
             "if Load Dataset can read it.")

FOLDS_CASE = sys.platform in ("win32", "darwin")
"""Whether IMG_1.JPG and img_1.jpg are one file, as on the disks of these systems."""

_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
"""Names that operating systems create; skipped without a note, as are names that begin with a dot."""

_REPEATS = re.compile(r"([1-9][0-9]*)_")
"""kohya's folder names: 10_name for 10 repeats."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a dataset folder."""

    path: Path
    name: str
    """Its path relative to the dataset folder, as it can be shown (`printable`), with forward slashes everywhere."""

    @property
    def suffix(self) -> str:
        """Its extension in lower case, such as ".png"."""
        return self.path.suffix.lower()

    @property
    def is_named_in_utf_8(self) -> bool:
        """Whether its name is text; on Linux names are bytes."""
        try:
            os.fsencode(self.path.name).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    @property
    def is_media(self) -> bool:
        """Whether it is a picture or clip to train on, by its name."""
        return self.suffix in SUFFIXES and not self.is_mask and not self.is_control

    @property
    def is_mask(self) -> bool:
        """Whether it lies in a folder of masks."""
        return self._is_in(MASKS)

    @property
    def is_control(self) -> bool:
        """Whether it lies in a folder of control clips."""
        return self._is_in(CONTROLS) and not self.is_mask

    def _is_in(self, name: str) -> bool:
        return name in (part.lower() for part in PurePosixPath(self.name).parts[:-1])

    @property
    def repeats(self) -> int | None:
        """The repeats that the nearest folder called `10_name` gives; None without one."""
        return next((number for _, number in self.numbered if number <= MAX_REPEATS), None)

    @property
    def numbered(self) -> list[tuple[str, int]]:
        """(path, number) of the folders around it whose names begin with a number, such as `10_name`, inner first."""
        folders = PurePosixPath(self.name).parents
        found = [(each.as_posix(), _REPEATS.match(each.name)) for each in folders]
        return [(path, int(match[1])) for path, match in found if match]


def is_caption(path: Path) -> bool:
    """Whether a file holds captions, or is a backup of one that caption_edit.py made; by its name."""
    name = path.name.lower()
    return path.suffix.lower() in CAPTION_SUFFIXES or name in CAPTION_FILES or BACKUP.search(name) is not None


def key_of(name: str) -> str:
    """A name in the form by which captions and masks are looked up: Unicode NFC, forward slashes, case as on disk."""
    key = unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
    return key.casefold() if FOLDS_CASE else key


def stem_of(name: str) -> str:
    """`key_of` a name without its extension."""
    return key_of(str(PurePosixPath(name).with_suffix("")))


def walk(root: Path, notes: Notes, may_read: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Every visible file, folder by folder and by name; links are followed, but no folder is read twice.

    Args:
        may_read: whether a resolved path may be read; links to other paths are skipped with a note. None allows all.

    Raises:
        UserError: the folder does not exist or cannot be read.
    """
    if os.path.isfile(root):
        raise UserError(f"{root} is a file; give the folder in which it lies.")
    if not os.path.isdir(root):  # False also where permissions hide it
        raise UserError(f"The folder {root} does not exist; give the folder that holds your pictures or clips.")
    seen: set[str] = set()

    def visit(folder: Path, prefix: str) -> Iterator[Entry]:
        real = os.path.realpath(folder)
        if real in seen or f"{os.path.realpath(root)}{os.sep}".startswith(f"{real.rstrip(os.sep)}{os.sep}") and prefix:
            notes.add(prefix.rstrip("/"), "a link to a folder that is read already; it is not read twice.")
            return
        seen.add(real)
        if may_read is not None and not may_read(real):
            notes.add(prefix.rstrip("/") or str(folder), LEADS_OUT)
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))  # as code points, in every locale
        except OSError as error:
            if not prefix:
                raise UserError(f"The folder {root} cannot be read ({error.strerror}); check its permissions."
                                ) from None
            notes.add(prefix.rstrip("/"), f"cannot be read ({error.strerror}); check its permissions.")
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            name = prefix + _shown(entry.name)
            if os.path.isdir(entry):  # unlike entry.is_dir() also for a link to itself
                if entry.is_symlink():
                    links.append((folder / entry.name, f"{name}/"))
                else:
                    yield from visit(folder / entry.name, f"{name}/")
            elif may_read is not None and entry.is_symlink() and not may_read(os.path.realpath(entry)):
                notes.add(name, LEADS_OUT)
            else:
                yield Entry(folder / entry.name, name)

    # links last, so that of two ways to one folder the link is the one that is skipped
    links: list[tuple[Path, str]] = []
    yield from visit(root, "")
    while links:
        yield from visit(*links.pop(0))


def check(root: Path, may_read: Callable[[str], bool] | None = None) -> None:
    """Raises UserError unless there is at least one picture or clip."""
    if not any(entry.is_media for entry in walk(root, Notes(), may_read)):
        raise UserError(f"The folder {root} holds no pictures or clips; put {FORMATS} files into it.")


def fingerprint(entries: Iterable[Entry]) -> str:
    """A hash that differs when a file has changed, was added or removed."""
    return content_hash([(entry.name, _stamp(entry.path)) for entry in entries])


def note_repeats(entries: Iterable[Entry], notes: Notes) -> None:
    """Add a note for each folder of pictures or clips whose name begins with a number."""
    for entry in entries:
        for path, number in entry.numbered:
            if number > MAX_REPEATS:
                notes.add(path, f"begins with a number over {MAX_REPEATS}, which is not taken for repeats.")
                continue
            notes.add(path, f"its files count {number} times, as its name says; rename it if that is no number of "
                      "repeats.")
            break


def _shown(name: str) -> str:
    """The name as it can be shown, the same in every locale (names are bytes, which Linux calls UTF-8)."""
    return printable(os.fsencode(name).decode("utf-8", "surrogateescape"))


def _stamp(path: Path) -> tuple | str:
    try:
        return astuple(Stamp.of(path))
    except OSError as error:
        return str(error.strerror)
