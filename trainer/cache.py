"""Encode once: latents, text embeddings and masks on disk, keyed by content, shared by all runs.

A latent is keyed by the file's bytes, its bucket, where a clip is cut, what lies under its transparency and the
VAE; a text by the caption and the text encoder. A changed caption redoes one text, a changed picture one latent,
and nothing goes stale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import masks, pictures, video
from .backend import LatentCodec, TextEncoder
from .buckets import Bucket
from .config import UserError, content_hash
from .folder import Stamp
from .manifest import Clip, Manifest, Rejection
from .pipeline import Job, Progress, run
from .store import Store, read_tensor
from .text_padding import TEXT_LENGTH

VERSION = 2
"""Part of every key: raise it when what is stored for the same content changes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One visit to a clip: what is read for it."""

    name: str
    latent_path: Path
    text_path: Path
    mask_path: Path | None = None


@dataclass(frozen=True, slots=True)
class CachedClip:
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

    def visit(self, number: int, is_caption_dropped: bool = False) -> Sample:
        """What is seen at the number-th visit, from 0: every window meets every caption in time."""
        windows, texts = len(self.latent_paths), len(self.text_paths)
        # where both come round together, the captions move on by one
        turn = number + number // math.lcm(windows, texts) if math.gcd(windows, texts) > 1 else number
        text = self.empty_text_path if is_caption_dropped else self.text_paths[turn % texts]
        return Sample(self.name, self.latent_paths[number % windows], text, self.mask_path)


@dataclass(frozen=True, slots=True)
class CachedDataset:
    """An encoded manifest: all that training needs of the data."""

    clips: tuple[CachedClip, ...]
    """Trained on."""
    held_out: tuple[CachedClip, ...]
    """Kept out of training, to be measured on."""
    digest: str
    """Of the data, the captions and both encoders."""
    trigger_word: str
    captions: tuple[str, ...]
    """The first of each clip that is trained on."""
    left_out: tuple[Rejection, ...] = ()
    """What could not be read to the end after all."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one bucket."""

    names: tuple[str, ...]
    latent_BCFHW: torch.Tensor
    """fp32."""
    text_BLD: torch.Tensor
    """fp32, zeros after the shorter texts."""
    mask_B11HW: torch.Tensor | None
    """fp32 in 0..1; None where no sample has a mask."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        mask_B11HW = self.mask_B11HW.to(device) if self.mask_B11HW is not None else None
        return Batch(self.names, self.latent_BCFHW.to(device), self.text_BLD.to(device), mask_B11HW)


def fill(manifest: Manifest, store: Store, codec: LatentCodec, text: TextEncoder) -> Iterator[Progress]:
    """Encode what is missing: all texts first, then all latents, so that one encoder works at a time.

    The generator returns the CachedDataset. A file that changed since it was scanned, or proves damaged, is left
    out of it with a reason.

    Raises:
        UserError: an encoder gave something that is not finite, the disk is full, or nothing is left to train on.
    """
    clips = [*manifest.clips, *manifest.held_out]
    located = locate(clips, store, codec.id, text.id)
    faults: dict[Path, Rejection] = {}
    with store.filling():
        for jobs in (_text_jobs(clips, located, text), _latent_jobs(clips, located, codec), _mask_jobs(clips, located)):
            faults |= yield from run(jobs, store)
        longest = [caption for path, caption in _texts(clips, located).items() if store.use(path) > TEXT_LENGTH]
    whole = [(clip, cached) for clip, cached in zip(clips, located, strict=True) if not faults.keys() & cached.paths]
    digests = {clip.digest for clip in manifest.held_out}
    trained = [(clip, cached) for clip, cached in whole if clip.digest not in digests]
    if not trained:
        raise UserError("No file is left to train on: " + " ".join(fault.reason for fault in list(faults.values())[:5]))
    return CachedDataset(
        clips=tuple(cached for _, cached in trained),
        held_out=tuple(cached for clip, cached in whole if clip.digest in digests),
        digest=content_hash(manifest.digest, sorted(path.name for path in faults), codec.id, text.id),
        trigger_word=manifest.trigger_word,
        captions=tuple(clip.captions[0] for clip, _ in trained),
        left_out=tuple({rejection.reason: rejection for rejection in faults.values()}.values()),
        notes=tuple(f'The caption "{caption[:60]}..." has more than {TEXT_LENGTH} tokens, which Wan was not trained '
                    "on; shorten it." for caption in longest),
    )


def locate(clips: Sequence[Clip], store: Store, codec_id: str, text_id: str) -> list[CachedClip]:
    """Where each clip's latents, texts and mask belong, whether they are there or not."""

    def text_path(caption: str) -> Path:
        return store.path("texts", content_hash(VERSION, caption, text_id))

    def latent_path(clip: Clip, start: int) -> Path:
        window = (start,) if clip.source else ()
        key = content_hash(VERSION, clip.digest, str(clip.bucket), codec_id, clip.background, *window)
        return store.path("latents", key)

    def mask_path(clip: Clip) -> Path | None:
        if clip.mask is None:
            return None
        shape = clip.bucket.height, clip.bucket.width
        return store.path("masks", content_hash(VERSION, clip.mask.digest, clip.mask.is_alpha, shape))

    return [
        CachedClip(
            name=clip.name,
            bucket=clip.bucket,
            repeats=clip.repeats,
            latent_paths=tuple(latent_path(clip, start) for start in clip.starts),
            text_paths=tuple(text_path(caption) for caption in clip.captions),
            mask_path=mask_path(clip),
            empty_text_path=text_path("") if clip.caption_dropout else None,
            caption_dropout=clip.caption_dropout,
        )
        for clip in clips
    ]


def read_batch(samples: Sequence[Sample]) -> Batch:
    """Read the files of samples of one bucket.

    Raises:
        UserError: a cache file has gone or is damaged.
    """
    masks_HW = [read_tensor(sample.mask_path) if sample.mask_path else None for sample in samples]
    latent_BCFHW = torch.stack([read_tensor(sample.latent_path) for sample in samples])
    mask_B11HW = None
    if any(mask_HW is not None for mask_HW in masks_HW):
        everything = torch.ones(latent_BCFHW.shape[-2:])
        mask_B11HW = torch.stack([everything if mask_HW is None else mask_HW for mask_HW in masks_HW])[:, None, None]
    texts = [read_tensor(sample.text_path).float() for sample in samples]
    return Batch(
        names=tuple(sample.name for sample in samples),
        latent_BCFHW=latent_BCFHW,
        text_BLD=torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        mask_B11HW=mask_B11HW,
    )


def _texts(clips: Sequence[Clip], located: Sequence[CachedClip]) -> dict[Path, str]:
    texts = {}
    for clip, cached in zip(clips, located, strict=True):
        texts.update(zip(cached.text_paths, clip.captions, strict=True))
        if cached.empty_text_path is not None:
            texts[cached.empty_text_path] = ""
    return texts


def _text_jobs(clips: Sequence[Clip], located: Sequence[CachedClip], text: TextEncoder) -> list[Job]:
    def encode(caption: str) -> torch.Tensor:
        return _compact(_finite(text.encode(caption), f'the text encoder gave for "{caption}"'))

    return [Job("captions", caption, path, 1, lambda caption=caption: caption, encode)
            for path, caption in _texts(clips, located).items()]


def _latent_jobs(clips: Sequence[Clip], located: Sequence[CachedClip], codec: LatentCodec) -> list[Job]:
    jobs = {}
    for clip, cached in zip(clips, located, strict=True):
        for path, start in zip(cached.latent_paths, clip.starts, strict=True):
            jobs[path] = Job(
                "latents", clip.name, path, clip.bucket.num_tokens, lambda clip=clip, start=start: _pixels(clip, start),
                lambda pixels, name=clip.name: _finite(codec.encode(pixels), f"the VAE gave for {name}"), clip.path)
    return list(jobs.values())


def _mask_jobs(clips: Sequence[Clip], located: Sequence[CachedClip]) -> list[Job]:
    masked = {cached.mask_path: clip for clip, cached in zip(clips, located, strict=True) if clip.mask is not None}
    return [Job("masks", clip.name, path, 1, lambda clip=clip: _mask(clip), None, clip.path)
            for path, clip in masked.items()]


def _pixels(clip: Clip, start: int) -> np.ndarray:
    """pixels_FHW3 of the very content that was scanned."""
    try:
        return _picture(clip) if clip.source is None else _window(clip, start)
    except OSError as error:
        raise UserError(_gone(clip.name, error)) from None


def _picture(clip: Clip) -> np.ndarray:
    data = clip.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != clip.digest:
        raise UserError(_changed(clip.name))
    image = pictures.open_picture(data, clip.name, clip.background or "white")
    return pictures.fit(image, clip.bucket.width, clip.bucket.height)[None]


def _window(clip: Clip, start: int) -> np.ndarray:
    try:
        pixels = video.read(clip.path, clip.name, clip.source, clip.bucket, start, clip.background or "white")
        if Stamp.of(clip.path) == clip.stamp:
            return pixels
    except UserError:
        if Stamp.of(clip.path) == clip.stamp:
            raise
    raise UserError(_changed(clip.name))


def _mask(clip: Clip) -> torch.Tensor:
    try:
        if hashlib.sha256(clip.mask.path.read_bytes()).hexdigest() != clip.mask.digest:
            raise UserError(_changed(clip.mask.name))
        return masks.read(clip.mask, clip.bucket)
    except OSError as error:
        raise UserError(_gone(clip.mask.name, error)) from None


def _changed(name: str) -> str:
    return f"{name} changed since it was scanned; queue again to use it as it is now."


def _gone(name: str, error: OSError) -> str:
    return f"{name} is gone ({error.strerror}); queue again to scan the folder anew."


def _finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(f"A value that is not finite is in what {what}; load it in fp32 or bf16, or replace it.")
    return tensor


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """In 16 bits where that loses nothing: text encoders compute in them and give fp32."""
    for dtype in (torch.bfloat16, torch.float16):
        smaller = tensor.to(dtype)
        if torch.equal(smaller.to(tensor.dtype), tensor):
            return smaller
    return tensor
