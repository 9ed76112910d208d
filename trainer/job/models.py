"""Where the files of the models are on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..base.errors import UserError
from .checked import MODELS
from .settings import Models


def find(models: Models, base: Path, roles: Iterable[str]) -> dict[str, Path]:
    """The files, or folders of diffusers, by role.

    A name is a path, absolute or relative to `base` or to the section's folder, or that of a file anywhere below it.

    Args:
        roles: keys of the section models whose files are needed, such as model and vae.

    Raises:
        UserError: one is not named or nowhere; the sentence says where it was looked for.
    """
    found = {}
    for role in roles:
        name = getattr(models, role).strip()
        if not name:
            raise UserError(f"{role} of {MODELS} is empty; give its file, or a folder of diffusers.")
        found[role] = _find(role, name, base, base / models.folder)
    return found


def _find(role: str, name: str, base: Path, folder: Path) -> Path:
    for place in (base, folder):
        if (place / name).exists():
            return (place / name).absolute()
    last = name.replace("\\", "/").rpartition("/")[2]
    below = sorted(path for path in folder.rglob("*") if path.name == last) if folder != base else []
    if not below:
        raise UserError(f"The file {name} ({role} of {MODELS}) is neither in {base} nor in {folder}; put it there, or "
                        "give its path.")
    return below[0].absolute()
