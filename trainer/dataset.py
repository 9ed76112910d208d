"""From a folder to a manifest: every file is kept, or left out with a reason, before anything is trained.

A picture gives one Clip, a video one or more: samples that are cut from it.
"""

from __future__ import annotations

import codecs
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import animations, buckets, extraction, files, pictures, video
from .buckets import Bucket
from .config import DatasetConfig, UserError, content_hash
from .extraction import Source

SUFFIXES = pictures.SUFFIXES | video.SUFFIXES
_FORMATS = "jpg, png, webp, bmp, gif, mp4, mov, mkv, webm or avi"


@dataclass(frozen=True, slots=True)
class Clip:
    """One sample that is trained on: a picture, or a window of a video."""

    path: Path
    caption: str
    """As it is encoded, trigger word included."""
    width: int
    """Of the file, as it is shown."""
    height: int
    digest: str
    """sha256 of the file's bytes."""
    bucket: Bucket
    repeats: int
    source: Source | None = None
    """What the video holds; None for a picture."""
    starts: tuple[int, ...] = (0,)
    """First frames of its windows, counted at 16 fps; more than one are taken in turn."""

    def __str__(self) -> str:
        """Its line in the report."""
        size = f"{self.path.name}: {self.width}x{self.height}"
        if self.source is None:
            return f"{size} -> {self.bucket}, x{self.repeats}, \"{self.caption}\""
        last = self.bucket.frames - 1
        windows = " or ".join(f"{start}-{start + last}" for start in self.starts)
        return (f"{size}, {self.source.num_frames} frames at {self.source.fps:g} fps -> {self.bucket}, frames "
                f"{windows} of {self.source.frames_at_16} at 16 fps, x{self.repeats}, \"{self.caption}\"")


@dataclass(frozen=True, slots=True)
class Rejection:
    """One file that is not trained on; `reason` is a sentence that names it and says what to do."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder turned out to hold."""

    config: DatasetConfig
    clips: tuple[Clip, ...]
    rejected: tuple[Rejection, ...]
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Changes with everything that changes what is trained on, and with nothing else."""
        return content_hash([(c.digest, c.caption, str(c.bucket), c.repeats, c.starts) for c in self.clips])

    def report(self) -> str:
        """The text shown before training: each file with its fate, then the totals."""
        used = len({clip.path for clip in self.clips})
        lines = [f"{used} of {used + len(self.rejected)} files are used from {self.config.folder}", ""]
        lines += [f"used      {clip}" for clip in self.clips]
        lines += [f"left out  {rejection.reason}" for rejection in self.rejected]
        lines += [f"note      {warning}" for warning in self.warnings]
        lines.append("")
        windows = Counter(clip.bucket for clip in self.clips)
        counts = Counter(bucket for bucket, _ in {(clip.bucket, clip.path) for clip in self.clips})
        for bucket, count in sorted(counts.items()):
            more = f" ({windows[bucket]} windows)" if windows[bucket] > count else ""
            lines.append(f"bucket {bucket}: {count} files{more}, {bucket.num_tokens} tokens a sample")
        samples = sum(clip.repeats for clip in self.clips)
        lines.append(f"{samples} samples an epoch ({samples} steps at batch size 1)")
        return "\n".join(lines)


def scan(config: DatasetConfig) -> Manifest:
    """Read every file of the folder once and say what becomes of it.

    Raises:
        UserError: the folder is missing or empty, or no file in it can be used.
    """
    folder = Path(config.folder)
    names = list_folder(folder)
    stems = {path.with_suffix("") for path in names if path.suffix.lower() in SUFFIXES}
    clips, rejected, notes = [], [], []
    for path in names:
        suffix = path.suffix.lower()
        if path.is_dir():
            notes.append(f"The subfolder {path.name} is not read; put its files beside the others.")
        elif suffix in SUFFIXES:
            try:
                clips += _read_file(path, config, notes)
            except UserError as error:
                rejected.append(Rejection(path, str(error)))
        elif suffix != ".txt":
            rejected.append(Rejection(path, f"{path.name} is no picture and no clip; use {_FORMATS}."))
        elif path.with_suffix("") not in stems:
            notes.append(f"{path.name} is a caption without its picture; add the picture or delete it.")
    if not clips:
        raise UserError(_nothing_usable(folder, rejected))
    return Manifest(config, tuple(clips), tuple(rejected), tuple(notes))


def list_folder(folder: Path) -> list[Path]:
    """The visible entries of a dataset folder, sorted by name.

    Raises:
        UserError: no such folder, not readable, or nothing in it that could be trained on.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist; give the folder that holds your pictures or clips.")
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); check its permissions.") from None
    if not any(path.suffix.lower() in SUFFIXES for path in paths):
        raise UserError(f"The folder {folder} holds no pictures or clips; put {_FORMATS} files into it.")
    return paths


def _read_file(path: Path, config: DatasetConfig, notes: list[str]) -> list[Clip]:
    """What is trained on of one file: a picture, or the windows of a video."""
    try:
        if not path.stat().st_size:
            raise UserError(f"{path.name} is empty (0 bytes); export or download it again.")
        if path.suffix.lower() in video.SUFFIXES:
            with path.open("rb"):  # permissions are the system's to explain, not FFmpeg's
                source = video.probe(path)
            return _windows(path, source, files.digest(path), config, notes)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}); check its permissions.") from None
    digest = hashlib.sha256(data).hexdigest()
    if pictures.is_animated(data, path.name):
        return _windows(path, animations.probe(path), digest, config, notes)
    image = pictures.open_picture(data, path.name)
    bucket = _bucket(path, image.width, image.height, 1, config)
    caption = _caption(path, config.trigger_word.strip(), notes)
    return [Clip(path, caption, image.width, image.height, digest, bucket, config.num_repeats)]


def _windows(path: Path, source: Source, digest: str, config: DatasetConfig, notes: list[str]) -> list[Clip]:
    """The samples cut from a video."""
    if source.num_frames == 1:
        raise UserError(f"{path.name} holds a single frame; save it as a picture (png), or use a longer clip.")
    cuts = extraction.cut(config.extraction, source.frames_at_16, config.frame_buckets, digest)
    if not cuts:
        raise UserError(_too_short(path, source.frames_at_16, config.frame_buckets))
    sizes = [_bucket(path, source.width, source.height, cut.frames, config) for cut in cuts]
    caption = _caption(path, config.trigger_word.strip(), notes)
    return [
        Clip(path, caption, source.width, source.height, digest, bucket, config.num_repeats, source, cut.starts)
        for bucket, cut in zip(sizes, cuts, strict=True)
    ]


def _too_short(path: Path, num_frames: int, frame_buckets: tuple[int, ...]) -> str:
    remedy = "use a longer clip"
    if num_frames >= 4:  # the last frame may be held for one more
        remedy = f"add {num_frames // 4 * 4 + 1} to frame_buckets, or {remedy}"
    shortest = min((frames for frames in frame_buckets if frames > 1), default=None)
    if shortest is None:
        return (f"{path.name} is a clip ({num_frames} frames at 16 fps) and frame_buckets has pictures alone; "
                f"{remedy}.")
    return (f"{path.name} has {num_frames} frames at 16 fps, the shortest clip bucket takes {shortest}; {remedy}. "
            "Clips are not used as stills: save a frame as a picture for that.")


def _bucket(path: Path, width: int, height: int, frames: int, config: DatasetConfig) -> Bucket:
    bucket = buckets.choose(width, height, config.resolution, frames)
    if buckets.needs_upscale(width, height, bucket) and not config.upscale:
        raise UserError(
            f"{path.name} is {width}x{height}, smaller than its bucket {bucket}; use a larger "
            f"{'clip' if frames > 1 else 'picture'}, lower the resolution, or switch upscale on."
        )
    return bucket


def _caption(path: Path, trigger: str, notes: list[str]) -> str:
    """The caption beside the file with the trigger word in it; what was mended goes to the notes."""
    text_path = path.with_suffix(".txt")
    caption = " ".join(_decode(text_path, notes).split()) if text_path.is_file() else ""
    if not caption and not trigger:
        raise UserError(f"{path.name} has no caption; write one into {text_path.name}, or set trigger_word.")
    if not caption:
        notes.append(f"{path.name} has no caption; it is captioned \"{trigger}\", write more into {text_path.name}.")
        return trigger
    if trigger and trigger not in caption:
        notes.append(f"{text_path.name} lacks the trigger word; \"{trigger}\" was put in front of it.")
        return f"{trigger}, {caption}"
    return caption


def _decode(path: Path, notes: list[str]) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}); check its permissions.") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.append(f"{path.name} is not UTF-8 and was read as Latin-1; save it as UTF-8 if it looks wrong.")
        return data.decode("latin-1")


def _nothing_usable(folder: Path, rejected: list[Rejection]) -> str:
    reasons = " ".join(rejection.reason for rejection in rejected[:5])
    more = f" And {len(rejected) - 5} more." if len(rejected) > 5 else ""
    if rejected and all("has no caption" in rejection.reason for rejection in rejected):
        return (f"No file in {folder} has a caption; write a .txt file of the same name beside each, "
                "or set trigger_word to caption all of them with it.")
    return f"No file in {folder} can be used: {reasons}{more}"
