"""Encode once: latents, conditions and masks on disk, keyed by content, shared by all runs.

A latent is keyed by the file's bytes, its bucket, where a clip is cut, the background colour under transparency and the
VAE; a condition by what it is made from (a caption, or the same pixels) and its encoder. So a changed caption
re-encodes one text, a changed picture one latent, and no entry is ever out of date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ..base.errors import content_hash
from ..data.buckets import Bucket
from ..data.manifest import Rejection, Sample
from ..model.conditions import CAPTION, SIZE, WINDOW, ConditionKind
from ..model.family import ModelFamily
from ..settings.data import NO_FRAME
from .store import Store

VERSION = 2
"""Part of every key: raise it when what is stored for the same content changes."""

_FIRST_FPS, _FIRST_STRIDE = 16, 8
"""fps and spatial stride of Wan2.1, the only family when keys were defined: keys leave these values out, so that caches
from that time stay valid."""


@dataclass(frozen=True, slots=True)
class Visit:
    """The cache files that are read for one visit to a sample."""

    name: str
    latent_path: Path
    condition_paths: Mapping[str, Path]
    """By kind of condition."""
    mask_path: Path | None = None
    is_condition_dropped: bool = False
    """Whether the model is given none of its frames (`ConditionKind.without`)."""
    prior_paths: Mapping[str, Path] = field(default_factory=dict)
    """The conditions of a prior caption, by kind."""

    def prior(self) -> Visit:
        """The same visit with the prior caption in the caption's place."""
        return replace(self, condition_paths={**self.condition_paths, **self.prior_paths})


@dataclass(frozen=True, slots=True)
class CachedSample:
    """One sample and the cache files of its latents, conditions and mask."""

    name: str
    bucket: Bucket
    repeats: int
    latent_paths: tuple[Path, ...]
    """One for each of its windows, which visits take in turn."""
    captions: tuple[Mapping[str, Path], ...]
    """For each of its captions, which visits take in turn: the conditions that are made from it, by kind."""
    windows: tuple[Mapping[str, Path], ...] = ()
    """For each of its windows: the conditions that are made from its pixels or size, by kind; empty where there are
    none."""
    mask_path: Path | None = None
    empty_caption: Mapping[str, Path] = field(default_factory=dict)
    """The conditions of the empty caption, by kind, for visits that drop the caption."""
    caption_dropout: float = 0.0
    condition_dropout: float = 0.0
    content: str = ""
    """Digest of all parts of the sample that training depends on."""
    prior_captions: tuple[Mapping[str, Path], ...] = ()
    """For each of its prior captions, which visits take in turn: the conditions that are made from it, by kind."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All cache files of this sample."""
        conditions = [path for by_kind in (*self.captions, *self.windows, self.empty_caption, *self.prior_captions)
                      for path in by_kind.values()]
        return (*self.latent_paths, *conditions, *([self.mask_path] if self.mask_path else []))

    def visit(self, number: int, is_caption_dropped: bool = False, is_condition_dropped: bool = False) -> Visit:
        """The files of the number-th visit, from 0. Windows and captions advance so that all their pairs occur."""
        windows = len(self.latent_paths)
        caption = self.empty_caption if is_caption_dropped else _in_turn(self.captions, number, windows)
        window = self.windows[number % windows] if self.windows else {}
        prior = _in_turn(self.prior_captions, number, windows) if self.prior_captions else {}
        return Visit(self.name, self.latent_paths[number % windows], {**caption, **window}, self.mask_path,
                     is_condition_dropped, prior)

    def prior_visit(self, number: int) -> Visit:
        """As `visit`, with a prior caption in the caption's place."""
        return self.visit(number).prior()


def _in_turn(captions: Sequence[Mapping[str, Path]], number: int, windows: int) -> Mapping[str, Path]:
    """The caption of the number-th visit to a sample with so many windows."""
    count = len(captions)
    # counts with a common divisor would repeat the same lcm pairs forever: shift the captions by one after these
    turn = number + number // math.lcm(windows, count) if math.gcd(windows, count) > 1 else number
    return captions[turn % count]


@dataclass(frozen=True, slots=True)
class CachedDataset:
    """An encoded manifest: all that training needs of the data."""

    family: ModelFamily
    samples: tuple[CachedSample, ...]
    """Trained on."""
    held_out: tuple[CachedSample, ...]
    """Kept out of training, for the held-out loss."""
    digest: str
    """Of the data, the captions and all encoders; names are no part of it."""
    trigger_word: str
    captions: tuple[str, ...]
    """The first caption of each sample that is trained on."""
    left_out: tuple[Rejection, ...] = ()
    """Files that the scan accepted, but that could not be read when they were to be encoded."""
    notes: tuple[str, ...] = ()
    former_digest: str = ""
    """The digest of earlier versions, which depends on the order of names."""
    condition: str = NO_FRAME
    """Which frames are given to the model (settings.data.CONDITIONS)."""
    prior_digest: str = ""
    """Of the prior captions of what is trained on, and of how they are read; no part of `digest`."""

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the conditions that each sample has."""
        return frozenset(self.samples[0].visit(0).condition_paths)

    def by_content(self) -> CachedDataset:
        """The same with samples in an order that does not depend on their names."""
        samples, held_out = (tuple(sorted(each, key=lambda sample: sample.content))
                             for each in (self.samples, self.held_out))
        return replace(self, samples=samples, held_out=held_out)


def locate(
    samples: Sequence[Sample], store: Store, codec_id: str, encoder_ids: Mapping[str, str],
    keys_of: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> list[CachedSample]:
    """The cache files of each sample's latents, conditions and mask, whether they exist or not.

    Args:
        codec_id: `id` of the VAE.
        encoder_ids: `id` of the encoder of each kind of condition, by kind; kinds without one are left out.
        keys_of: `key_of` of those encoders that have one, by kind.
    """

    def caption_paths(sample: Sample, caption: str) -> dict[str, Path]:
        return {kind.name: store.path(kind.folder, content_hash(
                    VERSION, *_name(kind), keys_of.get(kind.name, str)(caption), encoder_ids[kind.name]))
                for kind in kinds_of(sample, encoder_ids) if kind.source == CAPTION}

    def window_paths(sample: Sample, start: int) -> dict[str, Path]:
        return {kind.name: store.path(kind.folder, content_hash(
                    VERSION, *_name(kind), *_window(sample, start, encoder_ids[kind.name])))
                for kind in kinds_of(sample, encoder_ids) if kind.source == WINDOW}

    def size_paths(sample: Sample) -> dict[str, Path]:
        size_FHW = sample.family.latent_size(sample.bucket)
        return {kind.name: store.path(kind.folder, content_hash(
                    VERSION, kind.name, size_FHW, encoder_ids[kind.name]))
                for kind in kinds_of(sample, encoder_ids) if kind.source == SIZE}

    return [
        CachedSample(
            name=sample.name,
            bucket=sample.bucket,
            repeats=sample.repeats,
            latent_paths=tuple(store.path("latents", content_hash(VERSION, *_window(sample, start, codec_id)))
                               for start in sample.starts),
            captions=tuple(caption_paths(sample, caption) for caption in sample.captions),
            windows=tuple({**window_paths(sample, start), **sizes} for start in sample.starts),
            mask_path=_mask_path(sample, store),
            empty_caption=caption_paths(sample, "") if sample.caption_dropout else {},
            caption_dropout=sample.caption_dropout,
            condition_dropout=sample.condition_dropout,
            content=content_hash(sample.content),
            prior_captions=tuple(caption_paths(sample, caption) for caption in sample.prior_captions),
        )
        for sample in samples for sizes in [size_paths(sample)]
    ]


def kinds_of(sample: Sample, encoders: Collection[str]) -> list[ConditionKind]:
    """The conditions of a sample for which there is an encoder."""
    return [kind for kind in sample.family.kinds(sample.condition) if kind.name in encoders]


def _name(kind: ConditionKind) -> tuple[str, ...]:
    """The part of a key that tells kinds of conditions apart; text, the first kind, has none."""
    return () if kind.name == "text" else (kind.name,)


def _window(sample: Sample, start: int, encoder_id: str) -> list:
    """The parts of the key of what an encoder makes from the pixels of one window."""
    timing = [start] if sample.source else []
    if sample.source and sample.family.fps != _FIRST_FPS:
        timing.append(sample.family.fps)
    return [sample.digest, str(sample.bucket), encoder_id, sample.background, *timing, *sample.treatment]


def _mask_path(sample: Sample, store: Store) -> Path | None:
    if sample.mask is None:
        return None
    shape = [sample.bucket.height, sample.bucket.width]
    strides = sample.family.stride_FHW[1:]
    if strides != (_FIRST_STRIDE, _FIRST_STRIDE):
        shape += strides
    return store.path("masks", content_hash(VERSION, sample.mask.digest, sample.mask.is_alpha, shape))
