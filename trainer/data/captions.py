"""From the captions as they were written to those that are encoded: trigger word, fallbacks, orders of tags."""

from __future__ import annotations

import random
import re
from pathlib import Path

from ..base.errors import UserError
from ..model.family import ModelFamily
from ..settings.data import DatasetConfig
from .folder import Entry
from .notes import Notes

TAG_ORDERS = 8
"""Number of orders of a caption's tags, which visits take in turn: each is one text in the cache."""

MIN_TAGS = 3
"""Comma-separated parts from which on a caption is a list of tags."""

_PLACEHOLDER = "[trigger]"
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_LETTER = rf"[^\W{_IDEOGRAPHS}]"
"""A letter of an alphabetic script, or a digit: next to one, a match would be a part of a longer word. Ideographs are
not in it, since they are written without spaces between words."""


def finished(
    written: list[str], entry: Entry, config: DatasetConfig, family: ModelFamily, notes: Notes
) -> tuple[str, ...]:
    """The captions as they are encoded, with trigger word and orders of tags.

    Raises:
        UserError: no caption was written, and config.caption_fallback gives none.
    """
    trigger = config.trigger_word.strip()
    texts = written or _fallback(entry, config, notes)
    captions = [_with_trigger(text, trigger, entry, config, notes) for text in texts]
    for caption in captions:
        if estimate_tokens(caption) > family.text_length:
            notes.add(entry.name, f"its caption has more than {family.text_length} tokens, which {family.series} was "
                      "not trained on; shorten it.")
    captions = list(dict.fromkeys(captions))
    if config.shuffle_tags:
        captions = _in_turn([_tag_orders(caption, trigger) for caption in captions])
    return tuple(captions)


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger word occurs in the caption as a word of its own ("art" is not in "party")."""
    return re.search(trigger_pattern(trigger), caption) is not None


def trigger_pattern(trigger: str) -> str:
    """A regular expression that finds the trigger word as a word of its own."""
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, trigger) else ""
    after = rf"(?!{_LETTER})" if re.search(rf"{_LETTER}$", trigger) else ""
    return before + re.escape(trigger) + after


def estimate_tokens(caption: str) -> int:
    """Estimated number of UMT5 tokens, for when no text encoder is loaded yet.

    4/3 for each word of an alphabetic script, one for each punctuation mark and each character of Chinese, Japanese or
    Korean, and one for the end.
    """
    ideographs = len(_IDEOGRAPH.findall(caption))
    rest = _IDEOGRAPH.sub(" ", caption)
    return 1 + ideographs + len(re.findall(r"\w+", rest)) * 4 // 3 + len(re.findall(r"[^\w\s]", rest))


def _fallback(entry: Entry, config: DatasetConfig, notes: Notes) -> list[str]:
    trigger, stem = config.trigger_word.strip(), Path(entry.name).stem
    if config.caption_fallback == "file name":
        if not entry.is_named_in_utf_8:
            raise UserError(f"{entry.name} has no caption, and a name that is not UTF-8; rename it.")
        notes.add(entry.name, "has no caption; its name is taken for one.")
        return [stem]
    if config.caption_fallback == "leave out" or not trigger:
        remedy = "" if config.caption_fallback == "leave out" else ", or set trigger_word"
        raise UserError(f"{entry.name} has no caption; write one into {stem}.txt{remedy}.")
    notes.add(entry.name, f'has no caption; it is captioned "{trigger}", write more into a .txt of the same name.')
    return [trigger]


def _with_trigger(text: str, trigger: str, entry: Entry, config: DatasetConfig, notes: Notes) -> str:
    if _PLACEHOLDER in text:
        if not trigger:
            notes.add(entry.name, f"its caption has {_PLACEHOLDER}, and trigger_word is empty; set it.")
            return text
        text = text.replace(_PLACEHOLDER, trigger)
    if not trigger or has_trigger(text, trigger):
        return text
    if not config.prepend_trigger:
        notes.add(entry.name, f'its caption lacks the trigger word "{trigger}"; write it in, or switch '
                  "prepend_trigger on.")
        return text
    notes.add(entry.name, f'its caption lacks the trigger word; "{trigger}" was put in front of it.')
    return f"{trigger}, {text}"


def _tag_orders(caption: str, trigger: str) -> list[str]:
    whole = caption.replace(trigger, _PLACEHOLDER) if trigger else caption  # a trigger word may contain commas
    tags = [tag.strip().replace(_PLACEHOLDER, trigger) for tag in whole.split(",") if tag.strip()]
    if len(tags) < MIN_TAGS:
        return [caption]
    first = [tag for tag in tags if trigger and has_trigger(tag, trigger)][:1]
    rest = list(tags)
    for tag in first:
        rest.remove(tag)
    draw = random.Random(caption)
    orders = [", ".join([*first, *rest])]
    for _ in range(4 * TAG_ORDERS):  # bounded, since short lists have fewer than TAG_ORDERS orders
        order = ", ".join([*first, *draw.sample(rest, len(rest))])
        if order not in orders:
            orders.append(order)
    return orders[:TAG_ORDERS]


def _in_turn(orders: list[list[str]]) -> list[str]:
    """Interleaves the orders of several captions, so that visits alternate between the captions."""
    longest = max(len(order) for order in orders)
    return [order[i % len(order)] for i in range(longest) for order in orders]
