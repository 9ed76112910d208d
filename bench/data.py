"""What data costs: scanning a folder, filling the cache, opening it again, drawing batches.

    python bench/data.py [--comfyui PATH] [--out FILE] [--items N]

Each measurement runs in a process of its own. bench/README.md says what each figure means.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import filling
import host
import memory

FEW, WARM, TURNS, SETTLED = 10, 1000, 3, 2.1
"""Items of the base case for memory; items of real size; fills of each kind; seconds until a scan remembers a file."""
REAL_SHAPES, SMALL_SHAPES = ((16, 1, 64, 64), (100, 4096)), ((16, 1, 4, 4), (8, 64))
"""Shapes of the fp32 latent (real: of 512 x 512 pixels) and of the bf16 text embedding (real: a long caption)."""
WEB = ((512, 512), (640, 448), (448, 640), (768, 512), (512, 768), (1024, 576))
PHOTOGRAPH = (4000, 3000), (3000, 4000)
KINDS = (("pictures", 200, WEB, None), ("photographs, jpg", 160, PHOTOGRAPH, "jpg"),
         ("photographs, png", 40, PHOTOGRAPH, "png"))
PLAYED, GPU_ENCODES = "played", 0.03
"""Id of an encoder that only sleeps; seconds of sleep that stand for encoding on a GPU, while the CPU is free."""
WORDS = "a woman in an orange suit stands before the flag of her country and smiles at us while it rains".split()


def main() -> None:
    """Measure, print and write."""
    parser = host.parser("data", __doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000, metavar="N", help="pictures (default: 10000)")
    parser.add_argument("--one", nargs=2, metavar=("MEASUREMENT", "FOLDER"), help="this one, in this process")
    options = parser.parse_args()
    options.items = min(options.items, 40) if options.toy else options.items
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("bench/data.py reads the memory of its process from /proc; run it on Linux.")
    machine = host.start(options)
    if options.one:
        found = MEASUREMENTS[options.one[0]](Path(options.one[1]), options.items)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    figures = {"items": options.items}
    with tempfile.TemporaryDirectory(prefix="wantune-bench-") as folder:
        for name, found in measure_all(options, Path(folder)):
            figures[name] = found
            print(name, *(f"  {key}: {value}" for key, value in found.items()), sep="\n", flush=True)
            host.write(options, "data", machine, figures)


def measure_all(options, folder: Path) -> Iterator[tuple[str, dict]]:
    """Yield the title and the figures of each measurement."""
    few_items, warm_items = min(FEW, options.items // 2), min(WARM, options.items)
    few, many = make_pictures(folder / "few", few_items), make_pictures(folder / "many", options.items)
    for name in ("first scan", "second scan"):
        yield name, _grown(_in_process(options, "scan", many), _in_process(options, "scan", few))
    for kind, count, sizes, suffix in KINDS:
        count = 2 if options.toy else count
        pictures = make_pictures(folder / kind, count, sizes, suffix)
        yield f"scan of {count} {kind}", _in_process(options, "scan", pictures)
        title = f"fill from {count} {kind}, encoders sleep {1000 * GPU_ENCODES:g} ms"
        yield title, _in_process(options, "fill, GPU played", pictures)
    few = make_cache(folder / "few cached", few_items, *SMALL_SHAPES)
    many = make_cache(folder / "many cached", options.items, *SMALL_SHAPES)
    yield "sampling", _grown(_in_process(options, "sampling", many), _in_process(options, "sampling", few, few_items))
    warm = make_cache(folder / "warm", warm_items, *REAL_SHAPES)
    yield f"opening {warm_items} items of real size", _in_process(options, "opening", warm, warm_items)
    yield f"drawing from {warm_items} items of real size", _in_process(options, "sampling", warm, warm_items)
    (warm / "index.sqlite").unlink()
    yield f"opening without index {warm_items} items of real size", _in_process(options, "opening", warm, warm_items)
    for name in ("fill, toy",) if options.toy else ("fill, small encoders", "fill, VAE of real size"):
        yield name, _in_process(options, name, folder / name)


def _grown(many: dict, few: dict) -> dict:
    return many | {"growth over few items, MiB": round(many["peak over start, MiB"] - few["peak over start, MiB"], 1)}


def _in_process(options, name: str, folder: Path, items: int = 0) -> dict:
    folder.mkdir(exist_ok=True)
    out = folder / ".figures.json"
    command = [sys.executable, __file__, "--out", out, "--one", name, folder, "--threads", str(options.threads),
               "--items", str(items or options.items), *(["--comfyui", options.comfyui] if options.comfyui else [])]
    load = {"load of the machine before": round(os.getloadavg()[0], 1)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text(encoding="utf-8")) | load


def make_pictures(folder: Path, count: int, sizes: tuple = WEB, suffix: str | None = None) -> Path:
    """Crops of scikit-image's pictures under noise, each with a caption; one in ten a png unless `suffix` says."""
    import numpy as np
    import skimage
    from PIL import Image

    from wantune.tests.support import tools

    sources = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in tools.PICTURES]

    def make(index: int) -> None:
        random = np.random.default_rng([0, index])
        source, size = sources[index % len(sources)], sizes[index % len(sizes)]
        left, top = random.uniform(0, 0.4, 2) * source.size
        crop = source.resize(size, box=(left, top, left + 0.6 * source.width, top + 0.6 * source.height))
        pixels = np.minimum(np.asarray(crop), 255 - 12) + random.integers(0, 12, (size[1], size[0], 1), np.uint8)
        path = folder / f"{index:06}.{suffix or ('png' if index % 10 == 9 else 'jpg')}"
        Image.fromarray(pixels).save(path, quality=90, compress_level=1)
        path.with_suffix(".txt").write_text(f"{' '.join(random.choice(WORDS, 20))}, picture {index}", encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(count)))
    time.sleep(SETTLED)
    return folder


def make_cache(folder: Path, count: int, latent_shape: tuple, text_shape: tuple) -> Path:
    """Cache files, of random content, for the pictures of `pretended`."""
    import torch

    from wantune.trainer.encoded import cache
    from wantune.trainer.encoded.store import Store

    store = Store(folder)
    latent, text = torch.randn(latent_shape), torch.randn(text_shape).bfloat16()
    with store.filling():
        for cached in cache.locate(pretended(count).samples, store, PLAYED, {"text": PLAYED}):
            store.write(cached.latent_paths[0], latent)
            store.write(cached.captions[0]["text"], text)
    return folder


def pretended(count: int):
    """A Manifest of `count` pictures that do not exist."""
    from wantune.trainer.base import files
    from wantune.trainer.data import buckets, manifest
    from wantune.trainer.model import families
    from wantune.trainer.settings import data as config

    shapes = WEB[0], (416, 640), (640, 416)
    samples = [manifest.Sample(
        path=Path(f"{index}.jpg"), name=f"{index}.jpg", family=families.DEFAULT, width=1024, height=1024,
        trigger_word="", captions=(f"{' '.join(WORDS)}, picture {index}",), digest=f"{index:064}", repeats=1,
        stamp=files.Stamp(0, 0, 0), bucket=buckets.Bucket(1, *shapes[index % 3])) for index in range(count)]
    return manifest.Manifest((config.DatasetConfig(folder="."),), tuple(samples), (), (), ())


def scanned(folder: Path, resolution: int, frames: int = 1):
    """The Manifest of a folder; what the scan finds out is kept in its .scans, for the next process."""
    from wantune.trainer.data import scan as scanning
    from wantune.trainer.settings.data import DatasetConfig

    return scanning.scan(
        DatasetConfig(folder=str(folder), resolution=resolution, frame_buckets=(1, frames)), folder / ".scans")


def scan(folder: Path, _items: int = 0, resolution: int = 256) -> dict:
    """Measures a scan and its report."""
    from wantune.trainer.data import report

    cpu = time.process_time()
    (manifest, seconds), peak = peak_of(lambda: timed(lambda: scanned(folder, resolution)))
    cpu, count = time.process_time() - cpu, len(manifest.samples)
    page, json_seconds = timed(lambda: json.dumps(report.to_json(manifest)))
    return {"files": count, "scan, s": seconds, "of processor time, s": round(cpu, 2),
            "ms a picture": round(1000 * seconds / count, 2), "peak over start, MiB": peak,
            "report as text, s": timed(lambda: report.text(manifest))[1], "report as JSON, s": json_seconds,
            "report as JSON, MiB": round(len(page) / memory.MIB, 1)}


def opening(folder: Path, items: int) -> dict:
    """Measures opening a complete cache: the first time in this process, then five more times."""
    (_, first), peak = peak_of(lambda: timed(lambda: opened(folder, items)))
    return {"first in its process, s": first, "peak over start, MiB": peak,
            "median of 5 more, s": statistics.median(timed(lambda: opened(folder, items))[1] for _ in range(5))}


def sampling(folder: Path, items: int, epochs: int = 3) -> dict:
    """Measures drawing the order of batches alone, with the node's ten repeats; then batches read from the cache."""
    from wantune.trainer.encoded.batches import BucketSampler, LookAhead, read_batch
    from wantune.trainer.model.families import DEFAULT
    def both() -> tuple[float, float]:
        samples = opened(folder, items).samples
        sampler = BucketSampler([replace(sample, repeats=10) for sample in samples], 1, 0)
        steps = epochs * sampler.steps_per_epoch
        _, seconds = timed(lambda: [sampler.next() and None for _ in range(steps)])
        drawn = iter(BucketSampler(samples, 1, 0).next, ())
        ahead = LookAhead(read_batch(visits, DEFAULT.conditions) for visits in drawn)
        _, read_seconds = timed(lambda: [ahead.next() and None for _ in range(epochs * items)])
        ahead.close()
        return steps / seconds, epochs * items / read_seconds

    (orders, batches), peak = peak_of(both)
    return {"epochs of each": epochs, "orders a second": round(orders), "batches a second, read": round(batches),
            "peak over start, MiB": peak}


def fill(folder: Path, vae_dim: int, pictures: int, num_clips: int, frames: int, turns: int) -> dict:
    """Measures filling an empty cache with real pictures and clips, through a VAE of random weights."""
    from wantune.bench import full_size
    from wantune.tests.support import tools

    encoders = full_size.load_vae(vae_dim), tools.load_clip()
    filling.add_clips(make_pictures(folder / "data", pictures), num_clips)
    return filling.filled(folder, scanned(folder / "data", 256, frames), turns, filling.named(*encoders))


def played(seconds: float | None = None) -> SimpleNamespace:
    """An encoder that sleeps, as the CPU may while a GPU encodes; without `seconds` it must not be called."""
    import torch

    def encode(_content) -> torch.Tensor:
        assert seconds is not None, "a cache that has everything encodes nothing"
        time.sleep(seconds)
        return torch.zeros(REAL_SHAPES[0])

    return SimpleNamespace(id=PLAYED, encode=encode)


def peak_of(work: Callable) -> tuple:
    """The result of `work`, and by how many MiB the process's peak memory exceeded its memory before."""

    def resident(field: str) -> int:
        return int(Path("/proc/self/status").read_text(encoding="ascii").split(f"{field}:")[1].split()[0])

    memory.reset_peak()
    before = resident("VmRSS")
    result = work()
    return result, round((resident("VmHWM") - before) / 1024, 1)


def opened(folder: Path, items: int):
    """The CachedDataset of a complete cache made by `make_cache`."""
    from wantune.tests.support import tools
    from wantune.trainer.encoded.fill import fill
    from wantune.trainer.encoded.store import Store
    return tools.drained(fill(pretended(items), Store(folder), played(), {"text": played()}))[1]


def timed(work: Callable) -> tuple:
    """The result of `work`, and the seconds it took."""
    start = time.perf_counter()
    return work(), round(time.perf_counter() - start, 6)


MEASUREMENTS = {
    "scan": scan, "opening": opening, "sampling": sampling,
    "fill, GPU played": lambda folder, _items: filling.filled(
        folder, scanned(folder, 512), 1, lambda: (played(GPU_ENCODES), played(GPU_ENCODES))),
    "fill, toy": lambda folder, _items: fill(folder, 4, 1, 1, 5, 1),
    "fill, small encoders": lambda folder, _items: fill(folder, 4, 30, 2, 17, TURNS),
    "fill, VAE of real size": lambda folder, _items: fill(folder, 96, 5, 1, 5, TURNS),
}

if __name__ == "__main__":
    main()
