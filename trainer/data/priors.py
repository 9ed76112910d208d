"""Prior captions: prompts without the trigger word, for which the model should stay what it was before training.

They are what keeps a LoRA to its concept (DreamBooth, Ruiz et al., arXiv:2208.12242, section 3.3, calls it prior
preservation), and what tells how far it has moved from the model without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..base.errors import UserError
from ..settings.data import DatasetConfig
from .captions import has_trigger, trigger_pattern

_GAP = ",;\uff0c\u3001\uff1b \t"
"""What stands between the parts of a caption, also the full-width signs of Chinese."""

_POSSESSIVE = "(?:['\u2019]s)?"


def check(configs: Sequence[DatasetConfig]) -> None:
    """Raises UserError where a setting that makes prior captions holds a trigger word of the datasets."""
    for trigger in filter(None, (config.trigger_word.strip() for config in configs)):
        for config in configs:
            if has_trigger(config.class_word, trigger):
                raise UserError(f'class_word "{config.class_word}" has the trigger word "{trigger}" in it; write what '
                                "that is in words that the model knows, such as a person.")
            for prompt in config.preserve_prompts:
                if has_trigger(prompt, trigger):
                    raise UserError(f'preserve_prompts has "{prompt}" with the trigger word "{trigger}" in it, which '
                                    "is what is to change; write prompts without it.")


def prior_captions(captions: Sequence[str], config: DatasetConfig) -> tuple[str, ...]:
    """Those of a file, each once: its first caption with the class word in the trigger word's place, the prompts of the
    user, and the empty prompt.

    Args:
        captions: of the file, as they are encoded; one without the trigger word gives no prior caption.
    """
    trigger, own = config.trigger_word.strip(), []
    if trigger and has_trigger(captions[0], trigger):
        own = [_without(captions[0], trigger, config.class_word.strip())]
    return tuple(dict.fromkeys([*(text for text in own if not has_trigger(text, trigger)), *config.preserve_prompts,
                                ""]))


def _without(caption: str, trigger: str, class_word: str) -> str:
    pattern = trigger_pattern(trigger)
    if class_word:
        return re.sub(pattern, lambda _match: class_word, caption)
    left, *rest = re.split(pattern + _POSSESSIVE, caption)
    for part in rest:
        left = _joined(left, part)
    return left


def _joined(before: str, after: str) -> str:
    """What stood on both sides of the trigger word, with what of the spaces and commas between is still needed."""
    left, right = before.rstrip(_GAP), after.lstrip(_GAP)
    if not (left and right):
        return left + right
    gaps = before[len(left):], after[:len(after) - len(right)]
    if all(gaps):
        return left + max(gaps, key=lambda gap: len(gap.strip())) + right  # a comma rather than a space
    return left + (gaps[0] if right[0].isalnum() else "") + right
