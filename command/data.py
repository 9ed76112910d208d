"""`wantune scan` and `wantune cache`: what of a dataset is trained on, and its latents and texts on disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from ..trainer.base.errors import UserError
from ..trainer.base.switches import own_switches
from ..trainer.data import manifest, report
from ..trainer.data import scan as scans
from ..trainer.data.manifest import Manifest
from ..trainer.data.scan import ScanProgress
from ..trainer.encoded.cache import CachedDataset
from ..trainer.encoded.fill import Progress, fill
from ..trainer.encoded.store import Store
from ..trainer.job.settings import Settings
from ..trainer.training.launch import launched
from ..trainer.training.ranks import ALONE, Ranks
from . import given
from .engine import Engine, is_on_cpu
from .parsers import RUNS
from .terminal import Terminal, duration

Result = TypeVar("Result")


def scan(arguments: argparse.Namespace) -> int:
    """Print the report."""
    terminal = Terminal()
    found = scanned(given.of(arguments, terminal).settings, cache_folder(arguments), terminal)
    print(json.dumps(report.to_json(found), indent=1) if arguments.json else report.text(found))
    return 0


def cache(arguments: argparse.Namespace) -> int:
    """Encode what is not in the cache yet."""
    with launched(is_on_cpu()) as ranks:
        terminal = Terminal(is_quiet=not ranks.is_first)
        settings, folder = given.of(arguments, terminal).settings, cache_folder(arguments)
        cached = encoded(settings, folder, Engine(settings.models, folder, terminal.say), terminal, ranks=ranks)
        for note in cached.notes:
            terminal.say(f"note: {note}")
        if ranks.is_first:
            print(f"{len(cached.samples)} samples are encoded, {len(cached.held_out)} held out; the cache holds "
                  f"{Store(folder).size()} in {folder}")
    return 0


def cache_folder(arguments: argparse.Namespace) -> Path:
    """Where encoded data is kept."""
    return arguments.cache_folder or Path(getattr(arguments, "runs", RUNS)) / "cache"


def scanned(settings: Settings, folder: Path, terminal: Terminal) -> Manifest:
    """The datasets of the settings as one.

    Args:
        folder: of the cache, in which facts of files are remembered, too.

    Raises:
        UserError: there is no dataset, or none of its files can be used.
    """
    if not settings.datasets:
        raise UserError("No dataset is given; name its folder with --folder, or in the settings as folder of "
                        "[load_dataset].")
    parts = [followed(scans.scanning(config, folder / "scans"), "reading", terminal) for config in settings.datasets]
    return manifest.join(parts) if len(parts) > 1 else parts[0]


def encoded(
    settings: Settings, folder: Path, engine: Engine, terminal: Terminal, found: Manifest | None = None,
    ranks: Ranks = ALONE,
) -> CachedDataset:
    """The datasets of the settings, encoded; what the cache holds is not encoded again.

    Args:
        found: what `scanned` gave, where that is known.
        ranks: the processes that encode it, each a part.

    Raises:
        UserError: as `scanned`; a model is missing or another one than the data is for; the disk is full.
    """
    found = found or scanned(settings, folder, terminal)
    if found.rejected or found.notes:
        terminal.say(f"files left out: {len(found.rejected)}, notes on the data: {len(found.notes)}; `wantune scan` "
                     "lists them")
    encoders = engine.encoders(found.family, found.condition)
    with own_switches():
        cached = followed(
            fill(found, Store(folder), encoders.codec, encoders.conditions, ranks), "encoding", terminal)
    engine.release()
    for rejection in cached.left_out:
        terminal.say(f"left out: {rejection.reason}")
    return cached


def followed(progress: Generator[ScanProgress | Progress, None, Result], verb: str, terminal: Terminal) -> Result:
    """What the generator returns, with its progress shown."""
    with closing(progress):
        while True:
            try:
                event = next(progress)
            except StopIteration as finished:
                terminal.end()
                return finished.value
            left = getattr(event, "seconds_left", None)
            terminal.progress(event.done, event.total, f"{verb} {getattr(event, 'kind', 'files')} {event.done}/"
                              f"{event.total}", f"{duration(left)} left" if left else "")
