"""Which data is trained on: a frozen record, validated on construction."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import ImageColor

from ..base.errors import UserError, printable

SEPARATORS = re.compile("[,;\uff0c\uff1b]")
"""Separators in lists that users write, also the full-width ones of Chinese keyboards."""

MIN_RESOLUTION, MAX_RESOLUTION = 16, 4096
"""Limits of a resolution, in pixels (see DatasetConfig.resolution)."""

EXTRACTION_MODES = ("start", "middle", "uniform", "chunks", "random")
"""Which part of a clip is trained on: its start, its middle, all of it in evenly spaced windows that may overlap,
all of it in windows one after the other, or windows drawn at random and taken in turn."""

CAPTION_FALLBACKS = ("trigger word", "file name", "leave out")
"""What a file without a caption gets: the trigger word alone, its own name without the extension, or nothing,
so that it is left out."""

MASK_SOURCES = ("folder", "alpha", "none")
"""Where the loss weights come from: grey pictures of the same name in a folder `masks`, the picture's own alpha
channel, or no weights."""


NO_FRAME, FIRST_FRAME, BOTH_ENDS = "none", "first frame", "first and last frame"

CONDITIONS = (NO_FRAME, FIRST_FRAME, BOTH_ENDS)
"""The frames of a clip that are given to the model beside its caption, as image-to-video models take them."""


def parse_frame_buckets(text: str) -> tuple[int, ...]:
    """Read "1, 33" as (1, 33), ascending; 1 (a picture) is always among them.

    Whether the model family takes such frame counts is checked by `ModelFamily.check_frames`.

    Raises:
        UserError: an entry that is not a whole number.
    """
    buckets = {1}
    for part in SEPARATORS.split(text):
        if not part.strip():
            continue
        try:
            buckets.add(int(part))
        except ValueError:
            raise UserError(f"frame_buckets has {part.strip()!r}; write whole numbers such as 1, 33.") from None
    return tuple(sorted(buckets))


def parse_resolutions(text: str) -> tuple[int, ...]:
    """Read "256, 768" as (256, 768); "" gives none.

    Raises:
        UserError: an entry that is not a whole number.
    """
    parts = [part.strip() for part in SEPARATORS.split(text) if part.strip()]
    for part in parts:
        if not part.isdecimal():
            raise UserError(f"more_resolutions has {part!r}; write whole numbers such as 256, 768, or nothing.")
    return tuple(sorted({int(part) for part in parts}))


def parse_prompts(text: str) -> tuple[str, ...]:
    """The lines of a text as prompts, each once, without empty ones."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """Which files are trained on, and how they are cut."""

    folder: str
    """Absolute path of the folder with the pictures, the clips and their captions."""
    family: str = "Wan2.1 T2V"
    """The model family (model/families.py): decides the valid sizes, frames per second and what is encoded. Models
    that share the VAE share the cache, so that text-to-video stands for all of them."""
    condition: str = NO_FRAME
    """One of CONDITIONS."""
    condition_dropout: float = 0.0
    """Share of the visits, 0..1, in which the model is given no frame."""
    trigger_word: str = ""
    """Put in front of each caption that does not contain it; "" for none."""
    resolution: int = 512
    """Pixels; a bucket has about resolution x resolution pixels whatever its aspect ratio."""
    more_resolutions: tuple[int, ...] = ()
    """Further resolutions at which each file is trained on, where it is large enough."""
    frame_buckets: tuple[int, ...] = (1,)
    """Frame counts of clips; 1 is a picture."""
    num_repeats: int = 10
    """How often each file is seen in an epoch, at each resolution; a folder `5_name` (up to 200) has its own 5."""
    validation_items: int = 0
    """Number of files held out of training, chosen by a hash of their content."""
    upscale: bool = False
    """Enlarge pictures and clips that are smaller than their bucket instead of leaving them out."""
    extraction: str = "start"
    """One of EXTRACTION_MODES."""
    prepend_trigger: bool = True
    """Put the trigger word in front of captions that lack it; `[trigger]` in a caption is always replaced."""
    caption_fallback: str = "trigger word"
    """One of CAPTION_FALLBACKS."""
    caption_dropout: float = 0.0
    """Share of the visits, 0..1, in which the caption is left empty (classifier-free guidance, arXiv:2207.12598)."""
    shuffle_tags: bool = False
    """Take captions of comma-separated tags in several orders in turn; the trigger word stays in front."""
    masks: str = "folder"
    """One of MASK_SOURCES."""
    alpha_color: str = "white"
    """Background on which transparent pictures are composited: a colour's name or #rrggbb."""
    class_word: str = ""
    """What the trigger word stands for in the model's own words, such as "a person": takes its place in prior captions
    (data/priors.py); "" leaves it out there."""
    preserve_prompts: tuple[str, ...] = ()
    """Further prior captions, for all files."""

    def __post_init__(self) -> None:
        for resolution in (self.resolution, *self.more_resolutions):
            if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
                raise UserError(f"resolution is {resolution}; choose {MIN_RESOLUTION} to {MAX_RESOLUTION}, "
                                "for example 512.")
        for name in ("trigger_word", "class_word"):
            if printable(getattr(self, name)) != getattr(self, name):
                raise UserError(f"{name} {getattr(self, name)!r} holds half a character; type it again.")
        for prompt in self.preserve_prompts:
            if printable(prompt) != prompt:
                raise UserError(f"preserve_prompts has {prompt!r}, which holds half a character; type it again.")
        if self.num_repeats < 1:
            raise UserError(f"num_repeats is {self.num_repeats}; choose 1 or more.")
        if self.validation_items < 0:
            raise UserError(f"validation_items is {self.validation_items}; choose 0 or more.")
        if not 0 <= self.caption_dropout <= 1:  # also false for NaN
            raise UserError(f"caption_dropout is {self.caption_dropout}; choose 0 to 1, for example 0.1.")
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"condition_dropout is {self.condition_dropout}; choose 0 to 1, for example 0.1.")
        for name, choices in (("extraction", EXTRACTION_MODES), ("caption_fallback", CAPTION_FALLBACKS),
                              ("masks", MASK_SOURCES), ("condition", CONDITIONS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        try:
            ImageColor.getrgb(self.alpha_color)
        except ValueError:
            raise UserError(f"alpha_color is {self.alpha_color!r}; write a name such as white, or #rrggbb.") from None

    @property
    def background(self) -> str:
        """alpha_color as #rrggbb."""
        return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(self.alpha_color))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """`resolution` and `more_resolutions`, ascending, each once."""
        return tuple(sorted({self.resolution, *self.more_resolutions}))
