"""The registry of model families, by name. A new family is a file like wan21.py and an entry here."""

from __future__ import annotations

from ..base.errors import UserError
from .family import ModelFamily
from .wan21 import WAN21_T2V

DEFAULT = WAN21_T2V

_KNOWN = {family.name: family for family in (WAN21_T2V,)}


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
