"""Which folders the page may read: ComfyUI's input and datasets folders, and folders that Load Dataset has read.

Whoever may queue a graph can make the server read any folder; requests of a page alone must not.
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
from ...trainer.base.files import is_device
from .asking import Forbidden, NotFound, is_theirs, running_user

MAX_TEXT = 4096
"""Characters of a path."""

_NO_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters, but for those that stand for bytes of a name that is not UTF-8 (PEP 383)."""

_read: dict[tuple[str, str | None], None] = {}
"""(folder with its links resolved, user) for what Load Dataset has read since ComfyUI started."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that the page may read, with all folders in it."""

    name: str
    path: str
    """With all links resolved."""


def allow(folder: str | Path) -> None:
    """Let the page read a folder that the running node reads; with --multi-user only for the user who queued it."""
    _read[os.path.realpath(folder), running_user()] = None


def roots(user: str) -> list[Root]:
    """All that a user's page may read, the input folder first; a folder inside another one is left out."""
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
    """A function that tells whether a path, its links resolved, may be read."""
    allowed = [root.path for root in roots(user)]
    return lambda real: any(_lies_in(real, root) for root in allowed)


def inside(text: str, user: str) -> Path:
    """The path, links resolved, of a folder that exists and that the page may read.

    Args:
        text: as in the folder widget: absolute, or relative to ComfyUI's input folder.

    Raises:
        UserError: it is no path, or a file.
        Forbidden: it lies outside of the folders that may be read, whether it exists or not.
        NotFound: it does not exist.
    """
    allowed = [root.path for root in roots(user)]
    path = joined(text, folder_paths.get_input_directory(), allowed)
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        raise UserError(f"{_short(text)} is not a path; give the folder that holds your pictures.") from None
    if not any(_lies_in(real, root) for root in allowed):
        raise Forbidden(_elsewhere(text))
    if os.path.isfile(real):
        raise UserError(f"{_short(text)} is a file; give the folder in which it lies.")
    if not os.path.isdir(real):
        raise NotFound(f"The folder {_short(text)} does not exist; give the folder that holds your pictures or clips.")
    return Path(real)


def joined(text: str, base: str, allowed: Iterable[str], windows: bool = sys.platform == "win32") -> PurePath:
    """The path that a text of the folder widget means, found without the file system.

    On Windows even looking for \\\\server\\share contacts another computer, and NUL a device.

    Args:
        base: ComfyUI's input folder, for relative paths.
        allowed: root folders that may be read; one of them may lie on the network.

    Raises:
        UserError: it is no path.
        Forbidden: a network, device or half-relative path of Windows.
    """
    text = text.strip().strip('"')
    if not text:
        raise UserError("folder is empty; give the folder that holds your pictures, for example my_pictures.")
    if "\0" in text or len(text) > MAX_TEXT or _NO_NAME.search(text):
        raise UserError(f"folder {_short(text)!r} is not a path; give the folder that holds your pictures.")
    if not windows:
        return PurePath(base, text)
    path = PureWindowsPath(base, text)
    is_known = any(path.is_relative_to(root) and ".." not in path.parts for root in map(PureWindowsPath, allowed))
    written = PureWindowsPath(text)
    is_network = path.drive.startswith("\\\\") and not is_known
    is_half = bool(written.drive) != bool(written.root)  # C:folder and \folder depend on the process's current folder
    odd = [part for part in path.parts[1:] if ":" in part or is_device(part)]
    if is_network or is_half or odd:
        raise Forbidden(_elsewhere(text))
    return path


def shown(path: Path) -> str:
    """A folder as a value of the folder widget: relative to the input folder where it lies in it, else absolute."""
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
