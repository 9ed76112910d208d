"""How the library speaks of a mistake, and how it names content."""

from __future__ import annotations

import hashlib
import json


class UserError(ValueError):
    """A mistake the user can mend: one sentence that says what, what was found, and what to do."""


def content_hash(*parts: object) -> str:
    """sha256, in hex, of JSON-able parts: the one way keys of caches and runs are made."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
