"""The result of scanning dataset folders: samples, files left out with reasons, and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import UserError, content_hash
from ..base.files import Stamp
from ..model.family import ModelFamily
from ..settings.data import NO_FRAME, DatasetConfig
from . import priors
from .buckets import Bucket
from .masks import Mask
from .windows import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample that is trained on: a picture, or a window of a video, at one resolution."""

    path: Path
    name: str
    """The file's path relative to its dataset folder."""
    family: ModelFamily
    captions: tuple[str, ...]
    """As they are encoded, trigger word included; several are taken in turn."""
    trigger_word: str
    """Of its dataset."""
    width: int
    """Pixels of the file as it is shown, before it is scaled to its bucket; likewise `height`."""
    height: int
    digest: str
    """sha256 of the file's bytes."""
    stamp: Stamp
    """Of the file when it was read."""
    bucket: Bucket
    repeats: int
    source: Source | None = None
    """What the video holds; None for a picture."""
    starts: tuple[int, ...] = (0,)
    """First frames of its windows, counted at the family's fps; visits take several in turn."""
    background: str = ""
    """The colour on which it is composited, as #rrggbb; "" where nothing is transparent."""
    mask: Mask | None = None
    reading: str = ""
    """What is done to its pixels that earlier versions did not do, such as converting their colours."""
    caption_dropout: float = 0.0
    """Share of its visits in which it has an empty caption."""
    condition: str = NO_FRAME
    """Which of its frames are given to the model (settings.data.CONDITIONS)."""
    condition_dropout: float = 0.0
    """Share of its visits in which none is given."""
    prior_captions: tuple[str, ...] = ()
    """Prompts without the trigger word, for which the model should stay as it was (data/priors.py). They are no part of
    `content`: what is learned depends on them only where they are trained on (`Manifest.prior_digest`)."""

    @property
    def content(self) -> list:
        """All parts of the sample that training depends on, for digests."""
        mask = (self.mask.digest, self.mask.is_alpha) if self.mask else None
        return [self.digest, self.captions, str(self.bucket), self.repeats, self.starts, self.background, mask,
                self.caption_dropout, *self.treatment, *self._given]

    @property
    def treatment(self) -> list[str]:
        """`reading` as part of keys; empty for most files, so that what was made before there was it stays valid."""
        return [self.reading] if self.reading else []

    @property
    def _given(self) -> list:
        """Likewise empty where no frame is given."""
        return [] if self.condition == NO_FRAME else [self.condition, self.condition_dropout]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One file that is not trained on; `reason` is a sentence that names it and says what to do."""

    path: Path
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One dataset folder, or several joined."""

    configs: tuple[DatasetConfig, ...]
    samples: tuple[Sample, ...]
    """Trained on."""
    held_out: tuple[Sample, ...]
    """Kept out of training, for the held-out loss."""
    rejected: tuple[Rejection, ...]
    notes: tuple[str, ...]

    @property
    def family(self) -> ModelFamily:
        """The model family, the same for all samples."""
        return self.samples[0].family

    @property
    def condition(self) -> str:
        """Which frames are given to the model, the same for all samples."""
        return self.samples[0].condition

    @property
    def digest(self) -> str:
        """Changes with everything that changes what is trained or measured on, and with nothing else, such as names."""
        return content_hash(*(sorted(map(content_hash, (sample.content for sample in samples)))
                              for samples in (self.samples, self.held_out)))

    @property
    def prior_digest(self) -> str:
        """Of the prior captions of what is trained on."""
        return content_hash(sorted(content_hash(sample.content, sample.prior_captions) for sample in self.samples))

    @property
    def former_digest(self) -> str:
        """The digest of earlier versions, which changes with the order of names too."""
        return content_hash([sample.content for sample in self.samples], [sample.content for sample in self.held_out])

    @property
    def trigger_word(self) -> str:
        """The trigger words of all joined datasets, separated by commas."""
        words = (config.trigger_word.strip() for config in self.configs)
        return ", ".join(dict.fromkeys(word for word in words if word))


def hold_out(samples: Sequence[Sample], count: int, folder: str) -> set[str]:
    """Digests of `count` files to hold out, a function of all files' contents and not of their names or order.

    A file that is added or removed changes at most one of them.

    Raises:
        UserError: no file would be left to train on.
    """
    digests = sorted({sample.digest for sample in samples}, key=lambda digest: content_hash("hold out", digest))
    if count >= len(digests):
        most = len(digests) - 1
        raise UserError(f"validation_items is {count}, but {folder} has "
                        f"{'one usable file' if most == 0 else f'{most + 1} usable files'}; choose "
                        f"{f'{most} or less' if most > 0 else '0'}, or add files.")
    return set(digests[:count])


def split(samples: Sequence[Sample], digests: set[str]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(trained on, held out): whatever has the content of a held-out file is held out, wherever it lies."""
    return (tuple(sample for sample in samples if sample.digest not in digests),
            tuple(sample for sample in samples if sample.digest in digests))


def join(manifests: Sequence[Manifest]) -> Manifest:
    """Several datasets as one, each with its own repeats, resolution and trigger word.

    Raises:
        UserError: no file is left to train on, they are meant for different models, or the trigger word of one is in
            the prior captions of another.
    """
    meant_for = {manifest.family.name for manifest in manifests}
    if len(meant_for) > 1:
        raise UserError(f"The joined datasets are meant for {' and '.join(sorted(meant_for))}; choose one of them for "
                        "all.")
    given = {config.condition for manifest in manifests for config in manifest.configs}
    if len(given) > 1:
        raise UserError(f"The joined datasets have the conditions {' and '.join(sorted(given))}; choose one of them "
                        "for all.")
    priors.check([config for manifest in manifests for config in manifest.configs])
    digests = {sample.digest for manifest in manifests for sample in manifest.held_out}
    everything = [sample for manifest in manifests for sample in (*manifest.samples, *manifest.held_out)]
    samples, held_out = split(everything, digests)
    if not samples:
        raise UserError("All files of the joined datasets are held out; lower validation_items.")
    return Manifest(
        configs=tuple(config for manifest in manifests for config in manifest.configs),
        samples=samples,
        held_out=held_out,
        rejected=tuple(dict.fromkeys(rejection for manifest in manifests for rejection in manifest.rejected)),
        notes=tuple(dict.fromkeys(note for manifest in manifests for note in manifest.notes)),
    )
