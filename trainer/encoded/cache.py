"""Encode once: latents, text embeddings and masks on disk, keyed by content, shared by all runs.

A latent is keyed by the file's bytes, its bucket, where a clip is cut, what lies under its transparency and the
VAE; a text by the caption and the text encoder. A changed caption redoes one text, a changed picture one latent,
and nothing goes stale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import content_hash
from ..data.buckets import Bucket
from ..data.manifest import Rejection, Sample
from .store import Store

VERSION = 2
"""Part of every key: raise it when what is stored for the same content changes."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit to a clip: what is read for it."""

    name: str
    latent_path: Path
    text_path: Path
    mask_path: Path | None = None


@dataclass(frozen=True, slots=True)
class CachedSample:
    """Where the encoded forms of one clip lie."""

    name: str
    bucket: Bucket
    repeats: int
    latent_paths: tuple[Path, ...]
    """Of its windows, which are taken in turn."""
    text_paths: tuple[Path, ...]
    """Of its captions, which are taken in turn."""
    mask_path: Path | None = None
    empty_text_path: Path | None = None
    """What stands for the caption where it is dropped."""
    caption_dropout: float = 0.0

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files it needs."""
        return tuple(path for path in (*self.latent_paths, *self.text_paths, self.mask_path, self.empty_text_path)
                     if path is not None)

    def visit(self, number: int, is_caption_dropped: bool = False) -> Visit:
        """What is seen at the number-th visit, from 0: every window meets every caption in time."""
        windows, texts = len(self.latent_paths), len(self.text_paths)
        # where both come round together, the captions move on by one
        turn = number + number // math.lcm(windows, texts) if math.gcd(windows, texts) > 1 else number
        text = self.empty_text_path if is_caption_dropped else self.text_paths[turn % texts]
        return Visit(self.name, self.latent_paths[number % windows], text, self.mask_path)


@dataclass(frozen=True, slots=True)
class CachedDataset:
    """An encoded manifest: all that training needs of the data."""

    samples: tuple[CachedSample, ...]
    """Trained on."""
    held_out: tuple[CachedSample, ...]
    """Kept out of training, to be measured on."""
    digest: str
    """Of the data, the captions and both encoders."""
    trigger_word: str
    captions: tuple[str, ...]
    """The first of each clip that is trained on."""
    left_out: tuple[Rejection, ...] = ()
    """What could not be read to the end after all."""
    notes: tuple[str, ...] = ()


def locate(samples: Sequence[Sample], store: Store, codec_id: str, text_id: str) -> list[CachedSample]:
    """Where each clip's latents, texts and mask belong, whether they are there or not."""

    def text_path(caption: str) -> Path:
        return store.path("texts", content_hash(VERSION, caption, text_id))

    def latent_path(sample: Sample, start: int) -> Path:
        window = (start,) if sample.source else ()
        key = content_hash(VERSION, sample.digest, str(sample.bucket), codec_id, sample.background, *window)
        return store.path("latents", key)

    def mask_path(sample: Sample) -> Path | None:
        if sample.mask is None:
            return None
        shape = sample.bucket.height, sample.bucket.width
        return store.path("masks", content_hash(VERSION, sample.mask.digest, sample.mask.is_alpha, shape))

    return [
        CachedSample(
            name=sample.name,
            bucket=sample.bucket,
            repeats=sample.repeats,
            latent_paths=tuple(latent_path(sample, start) for start in sample.starts),
            text_paths=tuple(text_path(caption) for caption in sample.captions),
            mask_path=mask_path(sample),
            empty_text_path=text_path("") if sample.caption_dropout else None,
            caption_dropout=sample.caption_dropout,
        )
        for sample in samples
    ]
