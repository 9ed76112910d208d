"""The report before training, as text and as JSON: the totals, and what becomes of each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from ..base.errors import printable
from ..model.wan21 import IMAGE
from .captions import estimate_tokens, has_trigger
from .manifest import Manifest, Rejection, Sample

MIB = 2**20


def text(manifest: Manifest, max_files: int | None = None) -> str:
    """The report as lines of text.

    Args:
        max_files: list no more lines of a kind (used, left out, note), and say how many more there are; None: all.
    """
    files = _files(manifest)
    used = len({path for path, _ in files})
    count = used + len(manifest.rejected)
    folders = " and ".join(_folders(manifest))
    lines = [f"{used} of {count} files are used from {folders}", *_totals(manifest), ""]
    held_out = {sample.digest for sample in manifest.held_out}
    lines += _some([f"{'held out' if samples[0].digest in held_out else 'used    '}  {_line(sample)}"
                    for samples in files.values() for sample in samples], max_files)
    lines += _some([f"left out  {rejection.reason}" for rejection in manifest.rejected], max_files)
    lines += _some([f"note      {note}" for note in manifest.notes], max_files)
    return "\n".join(lines)


def to_json(manifest: Manifest, more: Callable[[Sample], dict] = lambda _sample: {}) -> dict:
    """The report as plain data: `files` (used and left out), `totals`, `notes` and more.

    Args:
        more: returns further entries for a sample's dict.
    """
    held_out = {sample.digest for sample in manifest.held_out}
    files = [_file(samples, samples[0].digest in held_out, more) for samples in _files(manifest).values()]
    files += left_out(manifest.rejected)
    num_samples = sum(sample.repeats for sample in manifest.samples)
    used = len({sample.path for sample in (*manifest.samples, *manifest.held_out)})
    totals = {
        "files": used + len(manifest.rejected), "files_used": used,
        "files_held_out": len({sample.path for sample in manifest.held_out}),
        "samples": num_samples, "steps_per_epoch": num_samples, "expected_cache_bytes": expected_bytes(manifest),
        "buckets": [{"width": bucket.width, "height": bucket.height, "frames": bucket.frames, "samples": number,
                     "tokens_per_step": manifest.family.num_tokens(bucket)}
                    for bucket, number in sorted(_per_bucket(manifest).items())],
    }
    return {"folders": _folders(manifest), "trigger_word": manifest.trigger_word,
            "files": files, "totals": totals, "notes": list(manifest.notes)}


def left_out(rejected: Iterable[Rejection]) -> list[dict]:
    """The entries of to_json's `files` for files that are not used."""
    return [{"file": rejection.name, "path": printable(str(rejection.path)), "used": False, "reason": rejection.reason}
            for rejection in rejected]


def expected_bytes(manifest: Manifest) -> int:
    """Estimated bytes of the cache on disk: fp32 latents exactly, 16-bit captions by their estimated tokens; images
    that are given count as one more latent, CLIP vision not at all."""
    samples = [*manifest.samples, *manifest.held_out]
    latents = {(sample.digest, sample.bucket, start, sample.background)
               for sample in samples for start in sample.starts}
    texts = {caption for sample in samples for caption in (*sample.captions, *sample.prior_captions)}
    family = manifest.family
    videos = 2 if IMAGE in family.kinds(manifest.condition) else 1
    return (videos * sum(family.num_tokens(bucket) * family.values_per_token * 4 for _, bucket, _, _ in latents)
            + sum(estimate_tokens(caption) * family.text_width * 2 for caption in texts))


def _folders(manifest: Manifest) -> list[str]:
    return [printable(config.folder) for config in manifest.configs]


def _files(manifest: Manifest) -> dict[object, list[Sample]]:
    """The samples of each file, in the order of paths; a file joined twice with different captions counts as two."""
    files: dict[object, list[Sample]] = {}
    for sample in sorted((*manifest.samples, *manifest.held_out), key=lambda sample: str(sample.path)):
        files.setdefault((sample.path, sample.captions), []).append(sample)
    return files


def _per_bucket(manifest: Manifest) -> Counter:
    num_samples: Counter = Counter()
    for sample in manifest.samples:
        num_samples[sample.bucket] += sample.repeats
    return num_samples


def _totals(manifest: Manifest) -> Iterable[str]:
    num_samples = _per_bucket(manifest)
    files = Counter(bucket for bucket, _ in {(sample.bucket, sample.path) for sample in manifest.samples})
    windows = Counter(bucket for bucket, *_ in {(sample.bucket, sample.path, sample.starts)
                                                for sample in manifest.samples})
    for bucket in sorted(num_samples):
        parts = f" in {windows[bucket]} windows" if windows[bucket] > files[bucket] else ""
        yield (f"bucket {bucket}: {_count(files[bucket], 'file')}{parts}, {num_samples[bucket]} samples an epoch, "
               f"{manifest.family.num_tokens(bucket)} tokens a step")
    total = num_samples.total()
    held_out = len({sample.path for sample in manifest.held_out})
    yield f"{total} samples an epoch ({total} steps at batch size 1), {_count(held_out, 'file')} held out"
    yield f"expected cache size: about {expected_bytes(manifest) / MIB:.1f} MiB"


def _line(sample: Sample) -> str:
    size = f"{sample.name}: {sample.width}x{sample.height}"
    if sample.source is None:
        cut = f"{size} -> {sample.bucket}"
    else:
        windows = " or ".join(f"{first}-{last}" for first, last in _windows(sample))
        cut = (f"{size}, {sample.source.num_frames} frames at {sample.source.fps:g} fps -> {sample.bucket}, "
               f"frames {windows} of {sample.source.frames_at(sample.family.fps)} at {sample.family.fps} fps")
    mask = f", mask {'alpha' if sample.mask.is_alpha else sample.mask.name}" if sample.mask else ""
    captions = " or ".join(f'"{caption}"' for caption in dict.fromkeys(sample.captions))
    trigger = {True: ", trigger word in it", False: ", without the trigger word", None: ""}[_trigger_present(sample)]
    return f"{cut}, x{sample.repeats}{mask}, {captions}{trigger}"


def _file(samples: list[Sample], is_held_out: bool, more: Callable[[Sample], dict]) -> dict:
    sample = samples[0]
    return {
        "file": sample.name,
        "path": printable(str(sample.path)),
        "used": True,
        "held_out": is_held_out,
        "width": sample.width,
        "height": sample.height,
        "frames": sample.source.num_frames if sample.source else 1,
        "fps": sample.source.fps if sample.source else None,
        "samples": [{"width": each.bucket.width, "height": each.bucket.height, "frames": each.bucket.frames,
                     "frames_used": [list(window) for window in _windows(each)], "repeats": each.repeats, **more(each)}
                    for each in samples],
        "captions": list(dict.fromkeys(sample.captions)),
        "trigger_present": _trigger_present(sample),
        "mask": sample.mask.name if sample.mask else None,
        "alpha_color": sample.background or None,
    }


def _trigger_present(sample: Sample) -> bool | None:
    if not sample.trigger_word:
        return None
    return all(has_trigger(caption, sample.trigger_word) for caption in sample.captions)


def _windows(sample: Sample) -> list[tuple[int, int]]:
    """(first, last) frames at the family's rate."""
    return [(start, start + sample.bucket.frames - 1) for start in sample.starts]


def _some(lines: list[str], count: int | None) -> list[str]:
    if count is None or len(lines) <= count:
        return lines
    return [*lines[:count], f"          ... and {len(lines) - count} more"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
