"""Putting a LoRA on a MODEL: Apply LoRA, Compare Checkpoints and previews do it here, and so alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ...trainer.lora import keys as lora_keys
from . import applying

logger = logging.getLogger("wantune")

ATTACHMENT = "wantune_loras"
"""Key of the ModelPatcher attachment in which `put_on` lists, in words, the LoRAs it has put on a MODEL."""


def apply(model, lora: Mapping, strength: float) -> tuple[object, lora_keys.Fit]:
    """A clone of a MODEL with any trainer's LoRA on it; at strength 0 a clone without it.

    Returns:
        The clone, and how the modules of the two matched.

    Raises:
        UserError: the LoRA was made for another model, or holds values that cannot be computed with.
    """
    applied, reading = put_on(model, lora, strength)
    if reading.notes:
        logger.warning("%s: %s", reading.fit, " ".join(reading.notes))
    return applied, reading.fit


def put_on(model, lora: Mapping, strength: float) -> tuple[object, applying.Reading]:
    """As `apply`, but gives all that was read of the LoRA."""
    reading = applying.read(model, lora)
    applied = model.clone()
    applied.set_attachments(ATTACHMENT, (*applied_loras(model), _in_words(lora, strength)))
    if strength != 0:
        applied.add_patches(reading.patches, strength)
    return applied, reading


def applied_loras(model) -> tuple[str, ...]:
    """The LoRAs that `apply` put on a MODEL, in words: name, step and strength as far as they are known."""
    return (model.get_attachment(ATTACHMENT) or ()) if model is not None else ()


def _in_words(lora: Mapping, strength: float) -> str:
    metadata = getattr(lora, "metadata", {})
    step = metadata.get("wantune.step") or metadata.get("ss_steps")
    name = metadata.get("ss_output_name") or metadata.get("modelspec.title")
    return ", ".join(filter(None, (name, step and f"step {step}", f"strength {strength:g}")))
