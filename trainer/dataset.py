"""From a folder to a manifest: every file is kept, or left out with a reason, before anything is trained."""

from __future__ import annotations

import codecs
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import buckets, video
from .buckets import Bucket
from .config import DatasetConfig, UserError, content_hash


@dataclass(frozen=True, slots=True)
class Clip:
    """One file that is trained on."""

    path: Path
    caption: str
    """As it is encoded, trigger word included."""
    width: int
    height: int
    digest: str
    """sha256 of the file's bytes."""
    bucket: Bucket
    repeats: int


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
        return content_hash([(c.digest, c.caption, str(c.bucket), c.repeats) for c in self.clips])

    def report(self) -> str:
        """The text shown before training: each file with its fate, then the totals."""
        total = len(self.clips) + len(self.rejected)
        lines = [f"{len(self.clips)} of {total} files are used from {self.config.folder}", ""]
        for clip in self.clips:
            lines.append(f"used      {clip.path.name}: {clip.width}x{clip.height} -> {clip.bucket}, "
                         f"x{clip.repeats}, \"{clip.caption}\"")
        lines += [f"left out  {rejection.reason}" for rejection in self.rejected]
        lines += [f"note      {warning}" for warning in self.warnings]
        lines.append("")
        per_bucket = Counter(clip.bucket for clip in self.clips)
        for bucket, count in sorted(per_bucket.items()):
            lines.append(f"bucket {bucket}: {count} files, {bucket.num_tokens} tokens a sample")
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
    clips, rejected, notes = [], [], []
    for path in names:
        suffix = path.suffix.lower()
        if path.is_dir():
            notes.append(f"The subfolder {path.name} is not read; put its files beside the others.")
        elif suffix in video.PICTURE_SUFFIXES:
            try:
                clips.append(_read_clip(path, config, notes))
            except UserError as error:
                rejected.append(Rejection(path, str(error)))
        elif suffix in video.CLIP_SUFFIXES:
            reason = f"{path.name} is a clip; clips are not read yet in this version, use pictures."
            rejected.append(Rejection(path, reason))
        elif suffix != ".txt":
            rejected.append(Rejection(path, f"{path.name} is no picture; use jpg, jpeg, png, webp or bmp."))
        elif not any(path.with_suffix(s) in names for s in _both_cases(video.PICTURE_SUFFIXES)):
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
        raise UserError(f"The folder {folder} does not exist; give the folder that holds your pictures.")
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); check its permissions.") from None
    if not any(path.suffix.lower() in video.PICTURE_SUFFIXES | video.CLIP_SUFFIXES for path in paths):
        raise UserError(f"The folder {folder} holds no pictures; put jpg, png, webp or bmp files into it.")
    return paths


def _both_cases(suffixes: frozenset[str]) -> set[str]:
    return set(suffixes) | {suffix.upper() for suffix in suffixes}


def _read_clip(path: Path, config: DatasetConfig, notes: list[str]) -> Clip:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}); check its permissions.") from None
    if not data:
        raise UserError(f"{path.name} is empty (0 bytes); export or download it again.")
    image = video.open_picture(data, path.name)
    bucket = buckets.choose(image.width, image.height, config.resolution)
    if buckets.needs_upscale(image.width, image.height, bucket) and not config.upscale:
        raise UserError(
            f"{path.name} is {image.width}x{image.height}, smaller than its bucket {bucket}; use a larger "
            "picture, lower the resolution, or switch upscale on."
        )
    return Clip(
        path=path,
        caption=_caption(path, config.trigger_word.strip(), notes),
        width=image.width,
        height=image.height,
        digest=hashlib.sha256(data).hexdigest(),
        bucket=bucket,
        repeats=config.num_repeats,
    )


def _caption(path: Path, trigger: str, notes: list[str]) -> str:
    """The caption beside the picture with the trigger word in it; what was mended goes to the notes."""
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
        return (f"No picture in {folder} has a caption; write a .txt file of the same name beside each, "
                "or set trigger_word to caption all of them with it.")
    return f"No file in {folder} can be used: {reasons}{more}"
