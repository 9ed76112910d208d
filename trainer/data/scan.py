"""From a folder to a manifest: every file is kept, or left out with a reason, before anything is trained."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..base.errors import UserError, content_hash
from ..base.remembered import Remembered
from ..base.threads import DaemonPool
from ..model import families
from ..model.conditions import KNOWN
from ..model.family import ModelFamily
from ..settings.data import BOTH_ENDS, NO_FRAME, DatasetConfig
from . import buckets, captions, facts, folder, masks, pictures, priors, windows
from .buckets import Bucket
from .caption_files import CaptionFiles
from .facts import Facts
from .folder import Entry
from .manifest import Manifest, Rejection, Sample, hold_out, split
from .masks import Mask
from .notes import Notes

MAX_THREADS = 8

MIN_KEPT = 0.5
"""A note is given about a picture of which its bucket's crop keeps less than this share."""


class NothingUsable(UserError):
    """No file of a folder can be used; `rejected` has the reason for each."""

    def __init__(self, sentence: str, rejected: tuple[Rejection, ...], notes: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.rejected = rejected
        self.notes = notes


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """`done` of `total` files are read; `name` was the last."""

    done: int
    total: int
    name: str


def scan(config: DatasetConfig, memory: Path | None = None) -> Manifest:
    """As `scanning`, but without progress: returns the Manifest."""
    progress = scanning(config, memory)
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            return finished.value


def scanning(
    config: DatasetConfig, memory: Path | None = None, may_read: Callable[[str], bool] | None = None
) -> Iterator[ScanProgress]:
    """Read every file of the folder and decide what becomes of it; yields progress and returns the Manifest.

    Args:
        memory: a folder for the remembered facts of files, so that unchanged files are not read again; None for none.
        may_read: as for `folder.walk`.

    Raises:
        UserError: the folder is missing or empty, a file of captions fits none of its files, the model family takes
            no clips of these lengths, or not these frames of them, or a prompt without the trigger word has it.
        NothingUsable: no file in it can be used.
    """
    family = families.named(config.family)
    for frames in config.frame_buckets:
        family.check_frames(frames)
    family.check_condition(config.condition)
    priors.check([config])
    root, notes = Path(config.folder), Notes()
    folder.check(root, may_read)
    entries = list(folder.walk(root, notes, may_read))
    media = [entry for entry in entries if entry.is_media]
    texts = CaptionFiles.among(entries, notes)
    texts.check()
    folder.note_repeats(media, notes)
    painted = _masks(entries, media, config, notes)
    facts_of = yield from _probe([*media, *painted.values()], config, memory, is_all=may_read is None)
    samples, rejected = [], []
    for entry in media:
        try:
            found = texts.read(entry)  # first: a caption of a file that is left out is not unused
            mask = _mask(entry, facts_of, painted.get(entry.name), config)
            written = captions.finished(found, entry, config, family, notes)
            samples += _samples(entry, facts_of[entry.name], mask, written, config, family, notes)
        except UserError as error:
            rejected.append(Rejection(entry.path, entry.name, str(error)))
    rejected += [Rejection(entry.path, entry.name, f"{entry.name} is no picture and no clip; use {folder.FORMATS}.")
                 for entry in entries if _is_foreign(entry)]
    if not samples:
        raise NothingUsable(_nothing_usable(root, rejected, config), tuple(rejected), notes.sentences())
    for name, remark in texts.unused():
        notes.add(name, remark)
    _note_twins(media, samples, config, notes)
    trained, held_out = split(samples, hold_out(samples, config.validation_items, str(root)))
    return Manifest((config,), trained, held_out, tuple(rejected), notes.sentences())


def _probe(
    entries: list[Entry], config: DatasetConfig, memory: Path | None, is_all: bool
) -> Iterator[ScanProgress]:
    """Yields progress, returns the Facts of each file by name. Threads help: reading and decoding release the GIL."""
    known = Remembered(memory / f"{content_hash(config.folder)[:16]}.sqlite" if memory else None, facts.VERSION)
    found = {}
    pool = DaemonPool(min(MAX_THREADS, os.cpu_count() or 1), "wantune-scan")
    try:
        facts_in_turn = pool.map(lambda entry: facts.probe(entry, known), entries)
        for done, (entry, each) in enumerate(zip(entries, facts_in_turn, strict=True), 1):
            found[entry.name] = each
            yield ScanProgress(done, len(entries), entry.name)
        if is_all:  # a scan of only some files must not forget the facts of the others
            known.keep(set(found))
    finally:
        pool.shutdown(cancel_futures=True)
        known.save()
    return found


def _masks(entries: list[Entry], media: list[Entry], config: DatasetConfig, notes: Notes) -> dict[str, Entry]:
    """The mask of each picture and clip that has one, by the picture's name."""
    found = [entry for entry in entries if entry.is_mask and entry.suffix in pictures.SUFFIXES]
    if config.masks != "folder":
        for entry in found:
            notes.add(entry.name, f'a mask that is not used, since masks is "{config.masks}".')
        return {}
    stems = {entry.name: folder.stem_of(_without_masks(entry.name)) for entry in found}
    by_stem = {stems[entry.name]: entry for entry in found}
    pictured = {entry.name: folder.stem_of(entry.name) for entry in media}
    masked = {name: by_stem[stem] for name, stem in pictured.items() if stem in by_stem}
    used = {entry.name for entry in masked.values()}
    for entry in found:
        if entry.name not in used:
            is_second = stems[entry.name] in pictured.values()
            notes.add(entry.name, "a second mask of that name, which is not used; delete one." if is_second else
                      "a mask without its picture; give both the same name, or rename the folder "
                      f'"{folder.MASKS}" if these are pictures.')
    return masked


def _without_masks(name: str) -> str:
    """The path without the folder of masks in it."""
    parts = PurePosixPath(name).parts
    level = next(i for i, part in enumerate(parts) if part.lower() == folder.MASKS)
    return "/".join(parts[:level] + parts[level + 1:])


def _mask(entry: Entry, facts_of: dict[str, Facts], painted: Entry | None, config: DatasetConfig) -> Mask | None:
    own = facts_of[entry.name]
    if own.fault:
        raise UserError(own.fault)
    if painted is not None:
        mask = facts_of[painted.name]
        if mask.fault:
            raise UserError(f"{entry.name} has a mask that cannot be used: {mask.fault}")
        if not masks.fits((mask.width, mask.height), (own.width, own.height)):
            raise UserError(f"{entry.name} is {own.width}x{own.height}, its mask {painted.name} is "
                            f"{mask.width}x{mask.height}; make the mask of the picture's shape.")
        return Mask(painted.path, painted.name, mask.digest, is_alpha=False)
    if config.masks == "alpha" and own.is_transparent:
        return Mask(entry.path, entry.name, own.digest, is_alpha=True)
    return None


def _samples(
    entry: Entry, held: Facts, mask: Mask | None, written: tuple[str, ...], config: DatasetConfig,
    family: ModelFamily, notes: Notes,
) -> list[Sample]:
    """The samples of one file, at each resolution it is large enough for: a picture, or windows of a video."""
    cuts = [windows.Cut(1, (0,))]
    if held.source is not None:
        num_frames = held.source.frames_at(family.fps)
        cuts = windows.cut(config.extraction, num_frames, config.frame_buckets, held.digest)
        if not cuts:
            raise UserError(_too_short(entry.name, num_frames, config.frame_buckets, family))
    elif config.condition != NO_FRAME:
        _check_still(entry.name, config.condition, family, notes)
    if held.pages > 1:
        notes.add(entry.name, f"holds {held.pages} pages; the first is used.")
    for remark in held.remarks:
        notes.add(entry.name, remark)
    size = held.width, held.height
    return [
        Sample(path=entry.path, name=entry.name, family=family, captions=written,
               trigger_word=config.trigger_word.strip(), width=held.width, height=held.height, digest=held.digest,
               stamp=held.stamp, bucket=bucket, repeats=entry.repeats or config.num_repeats, source=held.source,
               starts=cut.starts, background=config.background if held.is_layered else "", mask=mask,
               reading=held.reading, caption_dropout=config.caption_dropout, condition=config.condition,
               condition_dropout=config.condition_dropout, prior_captions=priors.prior_captions(written, config))
        for cut in cuts for bucket in _buckets(entry.name, size, cut.frames, config, family, notes)
    ]


def _check_still(name: str, condition: str, family: ModelFamily, notes: Notes) -> None:
    """Notes what a picture is good for where frames of clips are given; UserError where it is good for nothing."""
    if condition == BOTH_ENDS:
        raise UserError(f'{name} is a picture, which has no last frame; use a clip, or the condition "first frame".')
    if KNOWN in family.frame_conditions:
        notes.add(name, "a picture, which is given no frame: it is trained on as in text-to-video.")
    else:
        notes.add(name, "a picture, which is its own first frame; it teaches no motion.")


def _buckets(
    name: str, size: tuple[int, int], frames: int, config: DatasetConfig, family: ModelFamily, notes: Notes
) -> list[Bucket]:
    found = {buckets.choose(*size, resolution, family.side_multiple, frames): resolution
             for resolution in reversed(config.resolutions)}
    large = [bucket for bucket in found if config.upscale or not buckets.needs_upscale(*size, bucket)]
    if not large:
        least = min(found, key=family.num_tokens)
        raise UserError(f"{name} is {size[0]}x{size[1]}, smaller than its bucket {least}; use a larger "
                        f"{'clip' if frames > 1 else 'picture'}, lower the resolution, or switch upscale on.")
    for bucket, resolution in found.items():
        if bucket not in large:
            notes.add(name, f"too small for resolution {resolution}; it is trained on at the smaller ones.")
    if any(buckets.share_kept(*size, bucket) < MIN_KEPT for bucket in large):
        notes.add(name, "more than half of it is cropped away, since buckets reach from 1:4 to 4:1; crop it yourself.")
    return sorted(large)


def _too_short(name: str, num_frames: int, frame_buckets: tuple[int, ...], family: ModelFamily) -> str:
    remedy = "use a longer clip"
    longest = family.longest_up_to(num_frames + 1)  # the last frame may be held for one more
    if longest > 1:
        remedy = f"add {longest} to frame_buckets, or {remedy}"
    shortest = min((frames for frames in frame_buckets if frames > 1), default=None)
    if shortest is None:
        return (f"{name} is a clip ({num_frames} frames at {family.fps} fps) and frame_buckets has pictures alone; "
                f"{remedy}.")
    return (f"{name} has {num_frames} frames at {family.fps} fps, the shortest clip bucket takes {shortest}; {remedy}. "
            "Clips are not used as stills: save a frame as a picture for that.")


def _note_twins(media: list[Entry], samples: list[Sample], config: DatasetConfig, notes: Notes) -> None:
    """Add notes about files that have a name, a content or a caption in common."""
    used = {sample.name: sample for sample in samples}
    names, contents, texts = defaultdict(list), defaultdict(list), defaultdict(list)
    for entry in media:
        names[folder.stem_of(entry.name)].append(entry.name)
    for sample in used.values():
        contents[sample.digest].append(sample.name)
        if sample.captions[0] != sample.trigger_word:
            texts[sample.captions[0]].append(sample.name)
    for same in (names for names in names.values() if len(names) > 1):
        for name in same:
            notes.add(name, "one name but for the ending, so one caption and one mask; rename one if they differ.")
    for first, *others in contents.values():
        for name in others:
            notes.add(name, f"the same file as {first}, which counts that much more; delete one.")
    for caption, same in texts.items():
        for name in same if len(same) > 1 else ():
            notes.add(name, f'one caption for {len(same)} files, "{caption}"; say what differs.')


def _is_foreign(entry: Entry) -> bool:
    return not folder.is_caption(entry.path) and entry.suffix not in (
        pictures.SUFFIXES if entry.is_mask else folder.SUFFIXES)


def _nothing_usable(root: Path, rejected: list[Rejection], config: DatasetConfig) -> str:
    reasons = " ".join(rejection.reason for rejection in rejected[:5])
    more = f" And {len(rejected) - 5} more." if len(rejected) > 5 else ""
    if rejected and all("has no caption" in rejection.reason for rejection in rejected):
        is_strict = config.caption_fallback == "leave out"
        other = "choose another caption_fallback" if is_strict else "set trigger_word to caption all of them with it"
        return f"No file in {root} has a caption; write a .txt file of the same name beside each, or {other}."
    return f"No file in {root} can be used: {reasons}{more}"
