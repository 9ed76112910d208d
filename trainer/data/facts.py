"""All that a scan must read a picture's or clip's file for, remembered so that an unchanged file is not read again."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction

import av
import PIL

from ..base import files
from ..base.errors import UserError
from ..base.files import Stamp
from ..base.remembered import Remembered
from . import animations, masks, pictures, video
from .folder import Entry
from .windows import Source

VERSION = f"2, Pillow {PIL.__version__}, PyAV {av.__version__}"
"""Facts that were remembered under another version are ignored."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file holds; a file that cannot be used has a `fault` and nothing else."""

    digest: str = ""
    """sha256 of its bytes."""
    width: int = 0
    """As it is shown, in pixels."""
    height: int = 0
    source: Source | None = None
    """What a clip holds; None for a picture."""
    is_transparent: bool = False
    """Whether some pixels are not opaque."""
    pages: int = 1
    """Pictures in the file; the first is used."""
    is_layered: bool = False
    """Whether it may be transparent somewhere, so that it needs a background."""
    reading: str = ""
    """What is done to its pixels that earlier versions did not do; part of the names of its cache files."""
    remarks: tuple[str, ...] = ()
    """Clauses for the notes."""
    stamp: Stamp = Stamp(0, 0, 0)
    """Of the file when it was read."""
    fault: str = ""
    """A sentence that names the file and says what to do."""


def probe(entry: Entry, memory: Remembered) -> Facts:
    """Facts of a picture or clip, read from the file or, if it did not change, remembered.

    An error of the file system becomes a fault, too, but is not remembered.
    """
    try:
        stamp = Stamp.of(entry.path)
        known = memory.get(entry.name, stamp)
        if known is not None:
            return _from_json(known, stamp)
        try:
            facts = replace(_read(entry), stamp=stamp)
        except UserError as error:
            facts = Facts(fault=str(error))
        if Stamp.of(entry.path) != stamp:
            return Facts(fault=f"{entry.name} changed while it was read; queue again when it is complete.")
    except MemoryError:
        return Facts(fault=f"{entry.name} needs more memory than there is to be opened; scale it down.")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return Facts(fault=f"{entry.name} is gone, or a link to nothing; queue again, or delete the link.")
        return Facts(fault=f"{entry.name} cannot be read ({error.strerror}); check its permissions.")
    memory.put(entry.name, stamp, {key: value for key, value in asdict(facts).items() if key != "stamp"})
    return facts


def _read(entry: Entry) -> Facts:
    path, name = entry.path, entry.name
    if not path.stat().st_size:
        raise UserError(f"{name} is empty (0 bytes); export or download it again.")
    if path.suffix.lower() in video.SUFFIXES:
        with path.open("rb"):  # raises the system's error if permissions are missing, not FFmpeg's
            source = video.probe(path, name)
        return _of_clip(name, files.digest(path), source)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    picture = pictures.probe(data, name)
    if entry.is_mask:
        masks.check(data, name)
    if picture.is_animated:
        facts = _of_clip(name, digest, animations.probe(path, name, picture.reading))
        return replace(facts, remarks=(*picture.remarks, *facts.remarks))
    return Facts(digest, picture.width, picture.height, None, picture.is_transparent, picture.pages,
                 picture.is_transparent, picture.reading, picture.remarks)


def _of_clip(name: str, digest: str, source: Source) -> Facts:
    if source.num_frames == 1:
        raise UserError(f"{name} holds a single frame; save it as a picture (png), or use a longer clip.")
    return Facts(digest, source.width, source.height, source, reading=source.reading, remarks=video.remarks(source),
                 is_layered=source.is_animation or video.has_alpha(source))


def _from_json(known: dict, stamp: Stamp) -> Facts:
    source = known["source"]
    if source is not None:
        times = {field.name for field in fields(Source) if field.type == "Fraction"}
        source = Source(**{key: Fraction(value) if key in times else value for key, value in source.items()})
    return Facts(**{**known, "source": source, "remarks": tuple(known["remarks"]), "stamp": stamp})
