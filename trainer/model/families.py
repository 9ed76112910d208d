"""The registry of model families, by name. A new family is a file like wan21.py and an entry here."""

from __future__ import annotations

from ..base.errors import UserError
from .family import ModelFamily
from .wan21 import WAN21_FLF2V, WAN21_FUN_CONTROL, WAN21_I2V, WAN21_T2V, WAN21_VACE
from .wan22 import WAN22_5B, WAN22_FUN_CONTROL, WAN22_I2V

DEFAULT = WAN21_T2V

DATASETS = {"Wan2.1, Wan2.2 A14B": WAN21_T2V, "Wan2.2 5B": WAN22_5B}
"""What a dataset is made for, as users choose it: one family for each VAE, since models with one VAE share datasets."""

_KNOWN = {family.name: family for family in (
    WAN21_T2V, WAN21_I2V, WAN21_FLF2V, WAN21_FUN_CONTROL, WAN21_VACE, WAN22_I2V, WAN22_FUN_CONTROL, WAN22_5B)}


def register(family: ModelFamily) -> None:
    """Add a family that is defined elsewhere; replaces one of the same name."""
    _KNOWN[family.name] = family


def with_channels(latent_channels: int) -> ModelFamily:
    """A family whose latents have so many channels, for what depends on the latents alone; DEFAULT where there is none.

    Channels tell the VAE of the Wans, and so stride and frames per second.
    """
    return next((family for family in _KNOWN.values() if family.latent_channels == latent_channels), DEFAULT)


def named(name: str) -> ModelFamily:
    """The family of this name.

    Raises:
        UserError: there is no such family; the message lists the known ones.
    """
    if name not in _KNOWN:
        raise UserError(f"There is no model family {name!r}; choose one of {', '.join(_KNOWN)}.")
    return _KNOWN[name]


def of_dataset(choice: str) -> ModelFamily:
    """The family of an entry of DATASETS.

    Raises:
        UserError: there is no such entry; the message lists them.
    """
    if choice not in DATASETS:
        raise UserError(f"model is {choice!r}; choose one of {'; '.join(DATASETS)}.")
    return DATASETS[choice]
