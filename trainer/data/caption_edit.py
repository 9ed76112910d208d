"""Saving a caption that was edited in the page to the file it came from; no earlier text of the user is lost.

That is the .txt beside the picture, or whichever file of its own its caption stands in. The previous content is kept
as <name>.txt.bak, which is never overwritten: if the file was changed elsewhere since it was last saved from here, that
text becomes .bak2, and so on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

from ..base.errors import UserError, printable
from ..base.files import replacing, sync
from ..base.refusals import in_a_sentence
from .caption_files import CaptionFiles
from .folder import Entry

_saved: dict[str, str] = {}
"""sha256 of what was last saved from here, by path: such a text needs no backup."""


def save(entry: Entry, texts: CaptionFiles, text: str, before: str) -> Path:
    """Write the caption of a picture or clip, and return the path of its file.

    Args:
        texts: the caption files of its dataset folder, as they are now.
        before: the text as it was when the user began to edit it.

    Raises:
        UserError: the caption was changed elsewhere meanwhile, or the text cannot be saved; the old one is unchanged.
    """
    present, own, listed_in = texts.written(entry)
    if _plain(present) != _plain(before):
        raise UserError(f'The caption of {entry.name} was changed meanwhile, to "{_short(present)}"; '
                        "look at it and edit it again.")
    if not text.strip() and listed_in:
        raise UserError(f"Without this text {entry.name} takes its caption from {listed_in}; change it there.")
    if printable(text) != text:
        raise UserError("That caption holds half a character; type it again.")
    if "\0" in text:
        raise UserError("That caption holds a NUL character; type it again.")
    content = texts.encoded(own, _plain(text))
    path = own.path if own else entry.path.with_suffix(".txt")
    if own is None and os.path.lexists(path):
        raise UserError(f"{path.name} is there, but is no file that may be written; rename or delete it.")
    path = Path(os.path.realpath(path))  # a link stays a link
    with in_a_sentence(f"The caption of {entry.name} cannot be saved", path.parent, "save it again"):
        if own is not None:
            _keep(path)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    _saved[str(path)] = hashlib.sha256(content).hexdigest()
    return path


def _keep(path: Path) -> None:
    """Copy a .txt to the next free backup name, unless it was saved from here or that backup exists."""
    content = path.read_bytes()
    if _saved.get(str(path)) == hashlib.sha256(content).hexdigest():
        return
    for number in itertools.count(1):
        backup = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        try:
            with backup.open("xb") as file:
                file.write(content)
            sync(backup)
            return
        except FileExistsError:
            if not os.path.islink(backup) and backup.read_bytes() == content:
                return
        except OSError:
            backup.unlink(missing_ok=True)  # half of it
            raise


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
