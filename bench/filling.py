"""Filling an empty cache, against the time inside the encoders."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def add_clips(folder: Path, count: int) -> None:
    """Put up to two real clips beside the pictures of a folder, each with a caption."""
    from wantune.tests.support import clips

    for path in (path for path in clips.real() if path.stem in ("bikes", "bigbuckbunny")[:count]):
        (folder / path.name).symlink_to(path)
        (folder / path.name).with_suffix(".txt").write_text(f"a clip, {path.stem}", encoding="utf-8")


def named(vae, clip) -> Callable[[], tuple]:
    """Makes our encoders of a VAE and a CLIP, which names them: their fingerprints are part of a cache's keys."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    return lambda: (WanCodec(vae), CaptionEncoder(clip))


def filled(folder: Path, manifest, turns: int, encoders: Callable[[], tuple]) -> dict:
    """Fill an empty cache in each turn, with encoders made anew.

    Args:
        folder: for the caches.
        manifest: a scanned dataset.
    """
    from wantune.tests.support import tools
    from wantune.trainer.encoded.fill import fill
    from wantune.trainer.encoded.store import Store

    spent = []
    for turn in range(turns + (turns > 1)):  # a first turn of several warms up
        start = time.perf_counter()
        both = [Inside(encoder) for encoder in encoders()]
        naming = time.perf_counter() - start
        tools.drained(fill(manifest, Store(folder / f".cache-{turn}"), both[0], {"text": both[1]}))
        spent.append((time.perf_counter() - start, *(encoder.seconds for encoder in both), naming))
    spent = spent[turns > 1:]
    ratios = [round(total / (latents + texts), 3) for total, latents, texts, _ in spent]
    total, latents, texts, naming = (round(statistics.median(column), 3) for column in zip(*spent, strict=True))
    return {"fill / inside encoders": statistics.median(ratios), "of each turn": ratios, "files": len(manifest.samples),
            "fill, s": total, "inside the VAE, s": latents, "inside the text encoder, s": texts,
            "naming both encoders, s": naming}


class Inside:
    """Wraps an encoder and sums up the seconds spent in it."""

    def __init__(self, encoder) -> None:
        self.id, self._encoder, self.seconds = encoder.id, encoder, 0.0

    def encode(self, content):
        """What the wrapped encoder returns."""
        start = time.perf_counter()
        result = self._encoder.encode(content)
        self.seconds += time.perf_counter() - start
        return result


