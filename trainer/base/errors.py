"""The error that is shown to the user, text that can be shown at all, and the hash that names content."""

from __future__ import annotations

import hashlib
import json
import re

_HALF = re.compile("[\ud800-\udfff]")


class UserError(ValueError):
    """An error that the user can fix: one sentence that says what is wrong, what was found, and what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """The text, with `<e9>` for what is no character, so that it can be encoded, sent and logged.

    Python has surrogates where the name of a file is not UTF-8 (PEP 383), and where JSON holds half a character.
    """
    return _HALF.sub(lambda half: f"<{ord(half[0]) - 0xDC00 if 0xDC80 <= ord(half[0]) < 0xDD00 else ord(half[0]):x}>",
                     text)


def content_hash(*parts: object) -> str:
    """sha256, in hex, of JSON-serializable parts; all keys of caches and runs are made with it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
