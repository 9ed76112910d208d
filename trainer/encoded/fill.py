"""Filling the cache: threads decode files ahead of the encoder and write behind it, so that it waits for no disk."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..base.errors import UserError, content_hash
from ..base.files import Stamp
from ..base.threads import DaemonPool
from ..data import masks, pictures, video
from ..data.manifest import Manifest, Rejection, Sample
from ..model.backend import ConditionEncoder, LatentCodec
from ..model.conditions import CAPTION, SIZE, TEXT, ConditionKind
from .cache import CachedDataset, CachedSample, kinds_of, locate, shown_to
from .shares import WHOLE, Shares, check_seen
from .store import Store

READERS = min(8, os.cpu_count() or 1)
"""Threads that decode; an encoder on a GPU is faster than one of them."""

MAX_AHEAD = 50_000
"""Tokens whose decoded pixels may wait in memory for the encoder: about 140 MiB. One item always may, however large."""

Located = Sequence[tuple[Sample, CachedSample]]
"""Each sample with its cache files."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file of the cache and how it is made."""

    kind: str
    """For Progress: captions, latents, masks, or the cache folder of another kind of condition."""
    name: str
    path: Path
    work: float
    """Relative to other jobs of its kind: tokens of a latent, 1 for others."""
    read: Callable[[], object]
    """Runs ahead in a thread; if it raises UserError, the item is left out."""
    encode: Callable[[object], torch.Tensor] | None
    """Runs in the caller's thread; None where nothing is to be encoded."""
    source: Path | None = None
    """The file it is made from."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` items of a kind are dealt with; `name` was the last."""

    kind: str
    done: int
    total: int
    name: str
    seconds_left: float | None
    """For this kind; None until something was encoded."""


def run(jobs: Sequence[Job], store: Store, shares: Shares = WHOLE) -> Iterator[Progress]:
    """Do all jobs whose cache file is missing; yields progress, returns {cache file: Rejection} of what is unreadable.

    Of several processes each does its part and returns what all have found. Closing the generator waits for the file
    that is being written, and keeps all that were written.
    """
    jobs = [job for job in jobs if shares.owns(job.path.stem)]
    missing = [job for job in jobs if not store.use(job.path)]
    done, total = len(jobs) - len(missing), len(jobs)
    left, spent, encoded = sum(job.work for job in missing), 0.0, 0.0
    faults: dict[Path, Rejection] = {}
    if done:
        yield Progress(jobs[0].kind, done, total, "", None)
    reader, writer = DaemonPool(READERS, "wantune-read"), DaemonPool(1, "wantune-write")
    try:
        written, started = None, time.perf_counter()
        for job, content in _ahead(missing, reader):
            try:
                tensor = content.result()
            except UserError as error:
                faults[job.path] = Rejection(job.source, job.name, str(error))
            else:
                tensor = job.encode(tensor) if job.encode else tensor
                if written is not None:
                    written.result()  # one at a time: a full disk is known before the next is encoded
                written = writer.submit(store.write, job.path, tensor)
                encoded += job.work
            done, left, spent = done + 1, left - job.work, time.perf_counter() - started
            if done == total and written is not None:
                written.result()
            yield Progress(job.kind, done, total, job.name, spent / encoded * left if encoded else None)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
    return shares.gathered(faults)


def _ahead(jobs: Sequence[Job], reader: DaemonPool) -> Iterator[tuple[Job, Future]]:
    """Each job with the future of its `read`; the jobs after it are being read meanwhile."""
    waiting: deque[tuple[Job, Future]] = deque()
    work = 0.0
    for job in jobs:
        while len(waiting) > 1 and (len(waiting) > READERS or work + job.work > MAX_AHEAD):
            work -= waiting[0][0].work
            yield waiting.popleft()
        waiting.append((job, reader.submit(job.read)))
        work += job.work
    yield from waiting


def fill(
    manifest: Manifest, store: Store, codec: LatentCodec, encoders: Mapping[str, ConditionEncoder],
    shares: Shares = WHOLE,
) -> Iterator[Progress]:
    """Encode what is missing, one encoder after the other: the conditions kind by kind, then the latents.

    The generator yields progress and returns the CachedDataset. A file that changed since it was scanned, or proves
    damaged, is left out with a reason.

    Args:
        encoders: by the name of the kind of condition; the dataset gets those kinds of its family and its setting
            `condition` for which there is one.

    Raises:
        UserError: an encoder returned a value that is not finite, the disk is full, or nothing is left to train on.
    """
    family, samples = manifest.family, [*manifest.samples, *manifest.held_out]
    kinds = kinds_of(samples[0], encoders)
    ids = {kind.name: encoders[kind.name].id for kind in kinds}
    keys_of = {name: encoder.key_of for name, encoder in encoders.items() if hasattr(encoder, "key_of")}
    located = list(zip(samples, locate(samples, store, codec.id, ids, keys_of), strict=True))
    faults: dict[Path, Rejection] = {}
    with store.filling():
        shares.gathered({})  # what killed processes left is swept before anyone writes
        for kind in kinds:
            faults |= yield from run(_condition_jobs(kind, located, encoders[kind.name]), store, shares)
        faults |= yield from run(_latent_jobs(located, codec), store, shares)
        faults |= yield from run(_mask_jobs(located), store, shares)
        longest = shares.gathered({path: caption for path, caption in _captions(located, TEXT.name).items()
                                   if shares.owns(path.stem) and store.use(path) > family.text_length}).values()
    whole = [(sample, cached) for sample, cached in located if not faults.keys() & cached.paths]
    check_seen((path for _, cached in whole for path in cached.paths), shares)
    digests = {sample.digest for sample in manifest.held_out}
    trained = [(sample, cached) for sample, cached in whole if sample.digest not in digests]
    if not trained:
        raise UserError("No file is left to train on: " + " ".join(fault.reason for fault in list(faults.values())[:5]))
    captions, priors = ({caption for sample in samples for caption in getattr(sample, name)}
                        for name in ("captions", "prior_captions"))
    encoded_as = [sorted(path.name for path in faults), codec.id, *ids.values(), *_read_otherwise(captions, keys_of)]
    return CachedDataset(
        family=family,
        samples=tuple(cached for _, cached in trained),
        held_out=tuple(cached for sample, cached in whole if sample.digest in digests),
        digest=content_hash(manifest.digest, *encoded_as),
        former_digest=content_hash(manifest.former_digest, *encoded_as),
        condition=manifest.condition,
        prior_digest=content_hash(manifest.prior_digest, *_read_otherwise(priors, keys_of)),
        trigger_word=manifest.trigger_word,
        captions=tuple(sample.captions[0] for sample, _ in trained),
        left_out=tuple({rejection.reason: rejection for rejection in faults.values()}.values()),
        notes=tuple(f'The caption "{caption[:60]}..." has more than {family.text_length} tokens, which {family.series} '
                    "was not trained on; shorten it." for caption in longest),
    )


def _read_otherwise(captions: set[str], keys_of: Mapping[str, Callable[[str], str]]) -> list[str]:
    """What stands for those captions that an encoder does not read as they are."""
    return sorted({key_of(caption) for key_of in keys_of.values() for caption in captions} - captions)


def _captions(located: Located, kind: str) -> dict[Path, str]:
    """The caption that each of the kind's files is made from."""
    captions = {}
    for sample, cached in located:
        captions.update((by_kind[kind], caption) for by_kind, caption in
                        zip((*cached.captions, *cached.prior_captions), (*sample.captions, *sample.prior_captions),
                            strict=True) if kind in by_kind)
        if kind in cached.empty_caption:
            captions[cached.empty_caption[kind]] = ""
    return captions


def _condition_jobs(kind: ConditionKind, located: Located, encoder: ConditionEncoder) -> list[Job]:
    if kind.source == SIZE:
        return _size_jobs(kind, located, encoder)
    if kind.source != CAPTION:
        return _window_jobs(kind.folder, located, lambda cached, number: cached.windows[number][kind.name], encoder,
                            f"the encoder of {kind.name}", lambda sample: shown_to(kind, sample))

    def encode(caption: str) -> torch.Tensor:
        return _compact(_finite(encoder.encode(caption), f'the {kind.name} encoder gave for "{caption}"'))

    return [Job("captions", caption, path, 1, lambda caption=caption: caption, encode)
            for path, caption in _captions(located, kind.name).items()]


def _latent_jobs(located: Located, codec: LatentCodec) -> list[Job]:
    return _window_jobs("latents", located, lambda cached, number: cached.latent_paths[number], codec, "the VAE")


def _window_jobs(
    kind: str, located: Located, path_of: Callable[[CachedSample, int], Path],
    encoder: LatentCodec | ConditionEncoder, title: str, shown: Callable[[Sample], Sample] = lambda sample: sample,
) -> list[Job]:
    """One job for each cache file that is made from pixels; samples may share one.

    Args:
        shown: whose pixels they are.
    """
    jobs = {}
    for sample, cached in located:
        seen = shown(sample)
        for number, start in enumerate(sample.starts):
            path = path_of(cached, number)
            jobs[path] = Job(
                kind, sample.name, path, sample.family.num_tokens(sample.bucket),
                lambda seen=seen, start=start: _pixels(seen, start),
                lambda pixels, name=seen.name: _finite(encoder.encode(pixels), f"{title} gave for {name}"),
                sample.path)
    return list(jobs.values())


def _size_jobs(kind: ConditionKind, located: Located, encoder: ConditionEncoder) -> list[Job]:
    sizes = {by_kind[kind.name]: (sample, sample.family.latent_size(sample.bucket))
             for sample, cached in located for by_kind in cached.windows}
    return [Job(kind.folder, sample.name, path, 1, lambda size_FHW=size_FHW: size_FHW, encoder.encode)
            for path, (sample, size_FHW) in sizes.items()]


def _mask_jobs(located: Located) -> list[Job]:
    masked = {cached.mask_path: sample for sample, cached in located if sample.mask}
    return [Job("masks", sample.name, path, 1, lambda sample=sample: _mask(sample), None, sample.path)
            for path, sample in masked.items()]


def _pixels(sample: Sample, start: int) -> np.ndarray:
    """uint8 pixels_FHW3 of a window; UserError if the file is gone or its content is not what was scanned."""
    try:
        return _picture(sample) if sample.source is None else _window(sample, start)
    except OSError as error:
        raise UserError(_gone(sample.name, error)) from None


def _picture(sample: Sample) -> np.ndarray:
    data = sample.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sample.digest:
        raise UserError(_changed(sample.name))
    image = pictures.open_picture(data, sample.name, sample.background or "white")
    return pictures.fit(image, sample.bucket.width, sample.bucket.height)[None]


def _window(sample: Sample, start: int) -> np.ndarray:
    try:
        pixels = video.read(sample.path, sample.name, sample.source, sample.bucket, start, sample.family.fps,
                            sample.background or "white")
        if Stamp.of(sample.path) == sample.stamp:
            return pixels
    except UserError:
        if Stamp.of(sample.path) == sample.stamp:
            raise
    raise UserError(_changed(sample.name))


def _mask(sample: Sample) -> torch.Tensor:
    try:
        if hashlib.sha256(sample.mask.path.read_bytes()).hexdigest() != sample.mask.digest:
            raise UserError(_changed(sample.mask.name))
        return masks.read(sample.mask, sample.family.latent_size(sample.bucket)[1:])
    except OSError as error:
        raise UserError(_gone(sample.mask.name, error)) from None


def _changed(name: str) -> str:
    return f"{name} changed since it was scanned; queue again to use it as it is now."


def _gone(name: str, error: OSError) -> str:
    return f"{name} is gone ({error.strerror}); queue again to scan the folder anew."


def _finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(f"A value that is not finite is in what {what}; load it in fp32 or bf16, or replace it.")
    return tensor


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in bf16 or fp16 if that loses nothing: many text encoders compute in 16 bits and return fp32."""
    for dtype in (torch.bfloat16, torch.float16):
        smaller = tensor.to(dtype)
        if torch.equal(smaller.to(tensor.dtype), tensor):
            return smaller
    return tensor
