"""Checks that records of settings make of themselves when they are made."""

from __future__ import annotations

import math

from ..base.errors import UserError


def check_choice(record: object, **choices: tuple[str, ...]) -> None:
    """Raises UserError where a field of the record is none of its choices."""
    for name, allowed in choices.items():
        value = getattr(record, name)
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")


def check_least(record: object, **least: float) -> None:
    """Raises UserError where a field of the record is below its least value, or not finite."""
    for name, bound in least.items():
        value = getattr(record, name)
        if not (math.isfinite(value) and value >= bound):
            raise UserError(f"{name} is {value}; choose {bound} or more.")
