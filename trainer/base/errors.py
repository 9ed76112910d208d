"""The error that is shown to the user, and the hash that names content."""

from __future__ import annotations

import hashlib
import json


class UserError(ValueError):
    """An error that the user can fix: one sentence that says what is wrong, what was found, and what to do."""


def content_hash(*parts: object) -> str:
    """sha256, in hex, of JSON-serializable parts; all keys of caches and runs are made with it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
