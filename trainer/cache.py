"""Encode once: latents and text embeddings on disk, keyed by content, shared by all runs.

A latent is keyed by the file's bytes, its bucket, where a clip is cut and the VAE; a text by the caption and
the text encoder. A changed caption redoes one text, a changed picture one latent, and nothing goes stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import pictures, video
from .backend import LatentCodec, TextEncoder
from .buckets import Bucket
from .config import UserError, content_hash
from .dataset import Clip, Manifest
from .files import replacing

VERSION = 1
"""Part of every key: raise it when what is stored for the same content changes."""


@dataclass(frozen=True, slots=True)
class CachedClip:
    """Where the encoded form of one clip lies."""

    name: str
    bucket: Bucket
    repeats: int
    latent_path: Path
    """Of its first window."""
    text_path: Path
    other_windows: tuple[Path, ...] = ()
    """More latents of it: they are taken in turn."""

    def on_visit(self, number: int) -> CachedClip:
        """The clip with the latent whose turn it is when it is seen for the number-th time, from 0."""
        windows = (self.latent_path, *self.other_windows)
        return replace(self, latent_path=windows[number % len(windows)], other_windows=())


@dataclass(frozen=True, slots=True)
class CachedDataset:
    """An encoded manifest: all that training needs of the data."""

    clips: tuple[CachedClip, ...]
    digest: str
    """Of the data, the captions and both encoders."""
    trigger_word: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CacheProgress:
    """`done` of `total` items are on disk; `name` was the last."""

    done: int
    total: int
    name: str


def fill(manifest: Manifest, folder: Path, codec: LatentCodec, text: TextEncoder) -> Iterator[CacheProgress]:
    """Encode what is missing: all texts first, then all latents, so that one encoder works at a time.

    The generator returns the CachedDataset.

    Raises:
        UserError: a file changed since it was scanned, or an encoder gave something that is not finite.
    """
    clips = locate(manifest, folder, codec.id, text.id)
    texts = dict(zip((c.text_path for c in clips), (c.caption for c in manifest.clips), strict=True))
    latents = {path: (clip, start) for cached, clip in zip(clips, manifest.clips, strict=True)
               for path, start in zip((cached.latent_path, *cached.other_windows), clip.starts, strict=True)}
    total = len(texts) + len(latents)
    done = 0
    for path, caption in texts.items():
        if not is_whole(path):
            write_tensor(path, _finite(text.encode(caption), f"the text encoder gave for \"{caption}\""))
        done += 1
        yield CacheProgress(done, total, caption)
    for path, (clip, start) in latents.items():
        if not is_whole(path):
            pixels_FHW3 = _read_unchanged(clip, start)
            write_tensor(path, _finite(codec.encode(pixels_FHW3), f"the VAE gave for {clip.path.name}"))
        done += 1
        yield CacheProgress(done, total, clip.path.name)
    return CachedDataset(
        clips=clips,
        digest=content_hash(manifest.digest, codec.id, text.id),
        trigger_word=manifest.config.trigger_word.strip(),
        captions=tuple(clip.caption for clip in manifest.clips),
    )


def locate(manifest: Manifest, folder: Path, codec_id: str, text_id: str) -> tuple[CachedClip, ...]:
    """Where each clip's latents and text belong, whether they are there or not."""
    located = []
    for clip in manifest.clips:
        # a picture has no window, and its key none
        windows = [(start,) if clip.source else () for start in clip.starts]
        keys = [content_hash(VERSION, "latent", clip.digest, str(clip.bucket), codec_id, *each) for each in windows]
        latent_path, *others = [folder / "latents" / f"{key}.safetensors" for key in keys]
        text_key = content_hash(VERSION, "text", clip.caption, text_id)
        located.append(CachedClip(
            name=clip.path.name,
            bucket=clip.bucket,
            repeats=clip.repeats,
            latent_path=latent_path,
            text_path=folder / "texts" / f"{text_key}.safetensors",
            other_windows=tuple(others),
        ))
    return tuple(located)


def read_batch(clips: list[CachedClip]) -> tuple[torch.Tensor, torch.Tensor]:
    """latent_BCFHW and text_BLD (zeros after the shorter texts) of clips of one bucket, fp32 on the CPU."""
    latent_BCFHW = torch.stack([read_tensor(clip.latent_path) for clip in clips])
    text_BLD = torch.nn.utils.rnn.pad_sequence([read_tensor(clip.text_path) for clip in clips], batch_first=True)
    return latent_BCFHW, text_BLD


def is_whole(path: Path) -> bool:
    """Whether a cache file is there and complete; a truncated or foreign one counts as missing."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys()) == ["tensor"]
    except (OSError, SafetensorError):
        return False


def read_tensor(path: Path) -> torch.Tensor:
    """The tensor of one cache file.

    Raises:
        UserError: the file has gone or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("tensor")
    except (OSError, SafetensorError) as error:
        raise UserError(f"The cache file {path.name} cannot be read ({error}); run Cache Latents again.") from None


def write_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Write through a temporary file, so that a killed process never leaves half a cache file behind."""
    with replacing(path) as temporary:
        save_file({"tensor": tensor.contiguous()}, temporary)


def _read_unchanged(clip: Clip, start: int) -> np.ndarray:
    try:
        if clip.source is None:
            return pictures.read(clip.path, clip.bucket)
        return video.read(clip.path, clip.source, clip.bucket, start)
    except OSError as error:
        raise UserError(f"{clip.path.name} is gone ({error.strerror}); queue again to scan the folder anew.") from None


def _finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(f"A value that is not finite is in what {what}; load it in fp32 or bf16, or replace it.")
    return tensor
