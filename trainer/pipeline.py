"""Filling the cache: files are decoded ahead and written behind, so that the encoder never waits for a disk."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import UserError
from .manifest import Rejection
from .store import Store

READERS = min(8, os.cpu_count() or 1)
"""Threads that decode: an encoder on a GPU is faster than one of them."""

MAX_AHEAD = 50_000
"""Tokens decoded before their turn, whose pixels wait in memory: about 140 MiB. One item always is."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file of the cache and how it is made."""

    kind: str
    """What it is one of: captions, latents, masks."""
    name: str
    path: Path
    work: float
    """How much of it there is, against others of its kind: tokens of a latent."""
    read: Callable[[], object]
    """Runs ahead, in a thread; a UserError means that the item is left out."""
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


def run(jobs: Sequence[Job], store: Store) -> Iterator[Progress]:
    """Do all jobs whose file is not there yet; returns what could not be read: {its file in the cache: why}.

    Closing the generator waits for the file that is being written, and keeps all that are there.
    """
    missing = [job for job in jobs if not store.use(job.path)]
    done, total = len(jobs) - len(missing), len(jobs)
    left, spent, encoded = sum(job.work for job in missing), 0.0, 0.0
    faults: dict[Path, Rejection] = {}
    if done:
        yield Progress(jobs[0].kind, done, total, "", None)
    reader, writer = ThreadPoolExecutor(READERS, "wantune-read"), ThreadPoolExecutor(1, "wantune-write")
    try:
        written: Future | None = None
        started = time.perf_counter()
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
    return faults


def _ahead(jobs: Sequence[Job], reader: ThreadPoolExecutor) -> Iterator[tuple[Job, Future]]:
    """Each job with what it reads, while the next are read already."""
    waiting: deque[tuple[Job, Future]] = deque()
    work = 0.0
    for job in jobs:
        while len(waiting) > 1 and (len(waiting) > READERS or work + job.work > MAX_AHEAD):
            work -= waiting[0][0].work
            yield waiting.popleft()
        waiting.append((job, reader.submit(job.read)))
        work += job.work
    yield from waiting
