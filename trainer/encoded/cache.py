"""Encode once: latents, conditions and masks on disk, keyed by content, shared by all runs.

A latent is keyed by the file's bytes, its bucket, where a clip is cut, what lies under its transparency and the VAE; a
condition by what it is made from (a caption, or the same pixels) and its encoder. A changed caption redoes one text, a
changed picture one latent, and nothing goes stale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import content_hash
from ..data.buckets import Bucket
from ..data.manifest import Rejection, Sample
from ..model.conditions import CAPTION, WINDOW, ConditionKind
from ..model.family import ModelFamily
from .store import Store

VERSION = 2
"""Part of every key: raise it when what is stored for the same content changes."""

_FIRST_FPS, _FIRST_STRIDE = 16, 8
"""Keys leave these out: they belong to the family that there was when keys were made up."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit to a sample: the files that are read for it."""

    name: str
    latent_path: Path
    condition_paths: Mapping[str, Path]
    """By kind of condition."""
    mask_path: Path | None = None


@dataclass(frozen=True, slots=True)
class CachedSample:
    """Where the encoded forms of one sample lie."""

    name: str
    bucket: Bucket
    repeats: int
    latent_paths: tuple[Path, ...]
    """Of its windows, which are taken in turn."""
    captions: tuple[Mapping[str, Path], ...]
    """For each of its captions, which are taken in turn: the conditions that are made from it, by kind."""
    windows: tuple[Mapping[str, Path], ...] = ()
    """For each of its windows: the conditions that are made from its pixels, by kind; empty where there are none."""
    mask_path: Path | None = None
    empty_caption: Mapping[str, Path] = field(default_factory=dict)
    """What stands for the conditions of a caption where it is dropped."""
    caption_dropout: float = 0.0

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files it needs."""
        conditions = [path for by_kind in (*self.captions, *self.windows, self.empty_caption)
                      for path in by_kind.values()]
        return (*self.latent_paths, *conditions, *([self.mask_path] if self.mask_path else []))

    def visit(self, number: int, is_caption_dropped: bool = False) -> Visit:
        """What is seen at the number-th visit, from 0: every window meets every caption in time."""
        windows, captions = len(self.latent_paths), len(self.captions)
        # where both come round together, the captions move on by one
        turn = number + number // math.lcm(windows, captions) if math.gcd(windows, captions) > 1 else number
        caption = self.empty_caption if is_caption_dropped else self.captions[turn % captions]
        window = self.windows[number % windows] if self.windows else {}
        return Visit(self.name, self.latent_paths[number % windows], {**caption, **window}, self.mask_path)


@dataclass(frozen=True, slots=True)
class CachedDataset:
    """An encoded manifest: all that training needs of the data."""

    family: ModelFamily
    samples: tuple[CachedSample, ...]
    """Trained on."""
    held_out: tuple[CachedSample, ...]
    """Kept out of training, to be measured on."""
    digest: str
    """Of the data, the captions and all encoders."""
    trigger_word: str
    captions: tuple[str, ...]
    """The first of each sample that is trained on."""
    left_out: tuple[Rejection, ...] = ()
    """What could not be read to the end after all."""
    notes: tuple[str, ...] = ()


def locate(
    samples: Sequence[Sample], store: Store, codec_id: str, encoder_ids: Mapping[str, str]
) -> list[CachedSample]:
    """Where each sample's latents, conditions and mask belong, whether they are there or not.

    Args:
        encoder_ids: of the encoder of each kind of condition.
    """

    def caption_paths(sample: Sample, caption: str) -> dict[str, Path]:
        return {kind.name: store.path(kind.folder, content_hash(VERSION, *_name(kind), caption, encoder_ids[kind.name]))
                for kind in sample.family.conditions if kind.source == CAPTION}

    def window_paths(sample: Sample, start: int) -> dict[str, Path]:
        return {kind.name: store.path(kind.folder, content_hash(
                    VERSION, *_name(kind), *_window(sample, start, encoder_ids[kind.name])))
                for kind in sample.family.conditions if kind.source == WINDOW}

    return [
        CachedSample(
            name=sample.name,
            bucket=sample.bucket,
            repeats=sample.repeats,
            latent_paths=tuple(store.path("latents", content_hash(VERSION, *_window(sample, start, codec_id)))
                               for start in sample.starts),
            captions=tuple(caption_paths(sample, caption) for caption in sample.captions),
            windows=tuple(window_paths(sample, start) for start in sample.starts),
            mask_path=_mask_path(sample, store),
            empty_caption=caption_paths(sample, "") if sample.caption_dropout else {},
            caption_dropout=sample.caption_dropout,
        )
        for sample in samples
    ]


def _name(kind: ConditionKind) -> tuple[str, ...]:
    """What tells the keys of kinds apart; texts were there first and have none."""
    return () if kind.name == "text" else (kind.name,)


def _window(sample: Sample, start: int, encoder_id: str) -> list:
    """The content of a window's pixels as an encoder makes something of it."""
    timing = [start] if sample.source else []
    if sample.source and sample.family.fps != _FIRST_FPS:
        timing.append(sample.family.fps)
    return [sample.digest, str(sample.bucket), encoder_id, sample.background, *timing]


def _mask_path(sample: Sample, store: Store) -> Path | None:
    if sample.mask is None:
        return None
    shape = [sample.bucket.height, sample.bucket.width]
    strides = sample.family.stride_FHW[1:]
    if strides != (_FIRST_STRIDE, _FIRST_STRIDE):
        shape += strides
    return store.path("masks", content_hash(VERSION, sample.mask.digest, sample.mask.is_alpha, shape))
