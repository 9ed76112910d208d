"""Where the page may look: ComfyUI's input folder, its folders of datasets, and folders that Load Dataset has read.

Who can queue a graph already has the server read a folder; the page alone cannot.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

import folder_paths

from ...trainer.base.errors import UserError
from .asking import Forbidden, NotFound, is_theirs, running_user

MAX_TEXT = 4096
"""Characters of a path."""

_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?$", re.IGNORECASE)
"""Names that mean a device in each folder of Windows."""

_read: dict[tuple[str, str | None], None] = {}
"""(real folder, user) that Load Dataset has read since ComfyUI started."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder in which, and in whose folders, the page may look."""

    name: str
    path: str
    """Real."""


def allow(folder: str | Path) -> None:
    """Let the page look into a folder that the node which runs now reads; with --multi-user its user's page alone."""
    _read[os.path.realpath(folder), running_user()] = None


def roots(user: str) -> list[Root]:
    """All that there are, the input folder first; one that lies in another is not named again."""
    known = folder_paths.get_folder_paths("datasets") if "datasets" in folder_paths.folder_names_and_paths else []
    named = [("input", folder_paths.get_input_directory()), *(("datasets", path) for path in known),
             *(("", path) for path, owner in list(_read) if is_theirs(owner, user))]
    found: list[Root] = []
    for name, path in named:
        real = os.path.realpath(path)
        if os.path.isdir(real) and not any(_lies_in(real, root.path) for root in found):
            found.append(Root(name or os.path.basename(real) or real, real))
    return found


def reader(user: str) -> Callable[[str], bool]:
    """Tells whether a real path may be read."""
    allowed = [root.path for root in roots(user)]
    return lambda real: any(_lies_in(real, root) for root in allowed)


def inside(text: str, user: str) -> Path:
    """The real path of a folder that is there and may be looked into.

    Args:
        text: as in the folder widget: absolute, or from ComfyUI's input folder on.

    Raises:
        UserError: it is no path.
        Forbidden: it lies elsewhere, whether it is there or not.
        NotFound: it is not there.
    """
    allowed = [root.path for root in roots(user)]
    path = joined(text, folder_paths.get_input_directory(), allowed)
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        raise UserError(f"{_short(text)} is not a path; give the folder that holds your pictures.") from None
    if not any(_lies_in(real, root) for root in allowed):
        raise Forbidden(_elsewhere(text))
    if not os.path.isdir(real):
        raise NotFound(f"The folder {_short(text)} does not exist; give the folder that holds your pictures or clips.")
    return Path(real)


def joined(text: str, base: str, allowed: Iterable[str], windows: bool = sys.platform == "win32") -> PurePath:
    """The path that is meant, before the file system is asked.

    Windows would already ask another computer for \\\\server\\share, and a device for NUL.

    Raises:
        UserError: it is no path.
        Forbidden: a form that leads elsewhere.
    """
    text = text.strip().strip('"')
    if not text:
        raise UserError("folder is empty; give the folder that holds your pictures, for example my_pictures.")
    if "\0" in text or len(text) > MAX_TEXT or any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise UserError(f"folder {_short(text)!r} is not a path; give the folder that holds your pictures.")
    if not windows:
        return PurePath(base, text)
    path = PureWindowsPath(base, text)
    is_known = any(path.is_relative_to(root) and ".." not in path.parts for root in map(PureWindowsPath, allowed))
    written = PureWindowsPath(text)
    is_network = path.drive.startswith("\\\\") and not is_known
    is_half = bool(written.drive) != bool(written.root)  # C:folder and \folder depend on what else runs
    odd = [part for part in path.parts[1:] if ":" in part or _DEVICES.match(part)]
    if is_network or is_half or odd:
        raise Forbidden(_elsewhere(text))
    return path


def shown(path: Path) -> str:
    """What the folder widget takes for a folder: from the input folder on where it lies in it, else all of it."""
    base = os.path.realpath(folder_paths.get_input_directory())
    return path.relative_to(base).as_posix() if _lies_in(str(path), base) else str(path)


def _lies_in(real: str, root: str) -> bool:
    try:
        return os.path.commonpath([os.path.normcase(real), os.path.normcase(root)]) == os.path.normcase(root)
    except ValueError:  # on another drive
        return False


def _elsewhere(text: str) -> str:
    return (f"{_short(text)} lies outside of the folders that the page may look into; put it into ComfyUI's input "
            "folder or one of its datasets folders, or queue this node once.")


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
