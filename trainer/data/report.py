"""The report before training, as text and as JSON: each file with its fate, then the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from .captions import estimate_tokens, has_trigger
from .manifest import Clip, Manifest, Rejection

VALUES_PER_TOKEN = 16 * 2 * 2
"""Of a latent: 16 channels of a patch of 1 x 2 x 2."""

TEXT_WIDTH = 4096
"""Of UMT5-XXL, whose embeddings are kept in 16 bits."""

MIB = 2**20


def text(manifest: Manifest, max_files: int | None = None) -> str:
    """All of it in lines.

    Args:
        max_files: name no more files of a kind than this, and say how many more there are; None names all.
    """
    files = _files(manifest)
    used = len({path for path, _ in files})
    count = used + len(manifest.rejected)
    folders = " and ".join(config.folder for config in manifest.configs)
    lines = [f"{used} of {count} files are used from {folders}", *_totals(manifest), ""]
    held_out = {clip.digest for clip in manifest.held_out}
    lines += _some([f"{'held out' if clips[0].digest in held_out else 'used    '}  {_line(clip)}"
                    for clips in files.values() for clip in clips], max_files)
    lines += _some([f"left out  {rejection.reason}" for rejection in manifest.rejected], max_files)
    lines += _some([f"note      {note}" for note in manifest.notes], max_files)
    return "\n".join(lines)


def to_json(manifest: Manifest, more: Callable[[Clip], dict] = lambda _clip: {}) -> dict:
    """The same as plain data: `files` (used and left out), `totals`, `notes`.

    Args:
        more: what else to say of a sample.
    """
    held_out = {clip.digest for clip in manifest.held_out}
    files = [_file(clips, clips[0].digest in held_out, more) for clips in _files(manifest).values()]
    files += left_out(manifest.rejected)
    samples = sum(clip.repeats for clip in manifest.clips)
    used = len({clip.path for clip in (*manifest.clips, *manifest.held_out)})
    totals = {
        "files": used + len(manifest.rejected), "files_used": used,
        "files_held_out": len({clip.path for clip in manifest.held_out}),
        "samples": samples, "steps_per_epoch": samples, "expected_cache_bytes": expected_bytes(manifest),
        "buckets": [{"width": bucket.width, "height": bucket.height, "frames": bucket.frames, "samples": number,
                     "tokens_per_step": bucket.num_tokens} for bucket, number in sorted(_per_bucket(manifest).items())],
    }
    return {"folders": [config.folder for config in manifest.configs], "trigger_word": manifest.trigger_word,
            "files": files, "totals": totals, "notes": list(manifest.notes)}


def left_out(rejected: Iterable[Rejection]) -> list[dict]:
    """Of to_json's `files` those that are not used."""
    return [{"file": rejection.name, "path": str(rejection.path), "used": False, "reason": rejection.reason}
            for rejection in rejected]


def expected_bytes(manifest: Manifest) -> int:
    """About how much disk the cache takes: latents in fp32 exactly, captions by the estimate of their tokens."""
    clips = [*manifest.clips, *manifest.held_out]
    latents = {(clip.digest, clip.bucket, start, clip.background) for clip in clips for start in clip.starts}
    texts = {caption for clip in clips for caption in clip.captions}
    return (sum(bucket.num_tokens * VALUES_PER_TOKEN * 4 for _, bucket, _, _ in latents)
            + sum(estimate_tokens(caption) * TEXT_WIDTH * 2 for caption in texts))


def _files(manifest: Manifest) -> dict[object, list[Clip]]:
    """The samples of each file, in the order of paths; one that is joined twice with other captions is two."""
    files: dict[object, list[Clip]] = {}
    for clip in sorted((*manifest.clips, *manifest.held_out), key=lambda clip: str(clip.path)):
        files.setdefault((clip.path, clip.captions), []).append(clip)
    return files


def _per_bucket(manifest: Manifest) -> Counter:
    samples: Counter = Counter()
    for clip in manifest.clips:
        samples[clip.bucket] += clip.repeats
    return samples


def _totals(manifest: Manifest) -> Iterable[str]:
    samples = _per_bucket(manifest)
    files = Counter(bucket for bucket, _ in {(clip.bucket, clip.path) for clip in manifest.clips})
    windows = Counter(bucket for bucket, *_ in {(clip.bucket, clip.path, clip.starts) for clip in manifest.clips})
    for bucket in sorted(samples):
        parts = f" in {windows[bucket]} windows" if windows[bucket] > files[bucket] else ""
        yield (f"bucket {bucket}: {_count(files[bucket], 'file')}{parts}, {samples[bucket]} samples an epoch, "
               f"{bucket.num_tokens} tokens a step")
    total = samples.total()
    held_out = len({clip.path for clip in manifest.held_out})
    yield f"{total} samples an epoch ({total} steps at batch size 1), {_count(held_out, 'file')} held out"
    yield f"expected cache size: about {expected_bytes(manifest) / MIB:.1f} MiB"


def _line(clip: Clip) -> str:
    size = f"{clip.name}: {clip.width}x{clip.height}"
    if clip.source is None:
        cut = f"{size} -> {clip.bucket}"
    else:
        windows = " or ".join(f"{first}-{last}" for first, last in _windows(clip))
        cut = (f"{size}, {clip.source.num_frames} frames at {clip.source.fps:g} fps -> {clip.bucket}, frames {windows} "
               f"of {clip.source.frames_at_16} at 16 fps")
    mask = f", mask {'alpha' if clip.mask.is_alpha else clip.mask.name}" if clip.mask else ""
    captions = " or ".join(f'"{caption}"' for caption in dict.fromkeys(clip.captions))
    trigger = {True: ", trigger word in it", False: ", without the trigger word", None: ""}[_trigger_present(clip)]
    return f"{cut}, x{clip.repeats}{mask}, {captions}{trigger}"


def _file(clips: list[Clip], is_held_out: bool, more: Callable[[Clip], dict]) -> dict:
    clip = clips[0]
    return {
        "file": clip.name,
        "path": str(clip.path),
        "used": True,
        "held_out": is_held_out,
        "width": clip.width,
        "height": clip.height,
        "frames": clip.source.num_frames if clip.source else 1,
        "fps": clip.source.fps if clip.source else None,
        "samples": [{"width": each.bucket.width, "height": each.bucket.height, "frames": each.bucket.frames,
                     "frames_used": [list(window) for window in _windows(each)], "repeats": each.repeats, **more(each)}
                    for each in clips],
        "captions": list(dict.fromkeys(clip.captions)),
        "trigger_present": _trigger_present(clip),
        "mask": clip.mask.name if clip.mask else None,
        "alpha_color": clip.background or None,
    }


def _trigger_present(clip: Clip) -> bool | None:
    if not clip.trigger_word:
        return None
    return all(has_trigger(caption, clip.trigger_word) for caption in clip.captions)


def _windows(clip: Clip) -> list[tuple[int, int]]:
    """(first, last) frames at 16 fps."""
    return [(start, start + clip.bucket.frames - 1) for start in clip.starts]


def _some(lines: list[str], count: int | None) -> list[str]:
    if count is None or len(lines) <= count:
        return lines
    return [*lines[:count], f"          ... and {len(lines) - count} more"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
