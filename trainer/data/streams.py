"""A clip's file opened with PyAV: which of its streams is the clip, and that stream's frames one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition
from PIL import Image

from ..base.errors import UserError

_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
"""Formats that FFmpeg may detect; otherwise a playlist with a clip's name would make it read other files."""

_STILLS = frozenset({"mjpeg", "png", "bmp", "gif", "webp", "tiff"})
"""Codecs of cover pictures; a clip may be in one of them, but not beside a stream in another."""

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these drop the transparency that lies beside the frames."""


class Damaged(Exception):
    """A frame cannot be decoded, or its decoder says that it is not whole."""

    def __init__(self, seconds: Fraction) -> None:
        super().__init__()
        self.seconds = seconds
        """Its timestamp, or that of the last frame before it."""


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A clip's file and the stream of it that is the clip.

    Raises:
        UserError: the file is not a clip, or has no video, or reading it fails inside the context.
        OSError: it is missing or unreadable.
    """
    path.stat()  # a missing file is an OSError of the system, not one of FFmpeg's
    try:
        with av.open(str(path.absolute()), options={"format_whitelist": _FORMATS}) as container:
            stream = _film(container, name)
            # PyAV before 17 ends FFmpeg's threads while it holds the GIL, for which these wait where its log is on.
            stream.thread_type = "AUTO" if av.logging.get_level() is None else "NONE"
            yield container, stream
    except (av.FFmpegError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(_not_a_clip(path, name) or f"{name} is damaged or no clip ({reason}); "
                        "export or download it again.") from None


def _film(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The stream that moves: a cover picture is one, too, and may come first."""
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        what = "but a cover picture" if container.streams.video else "(sound alone?)"
        raise UserError(f"{name} holds no video {what}; replace it or take it out.")
    videos = [stream for stream in videos if stream.codec_context is not None]
    if not videos:
        raise UserError(f"{name} is in a codec that this PyAV does not know; export it as mp4 (H.264).")
    moving = [stream for stream in videos if stream.frames != 1 and stream.codec_context.name not in _STILLS]
    return (moving or videos)[0]


def _not_a_clip(path: Path, name: str) -> str | None:
    try:
        with Image.open(path) as image:
            suffix = f".{image.format.lower()}"
    except Exception:  # whatever: it is no picture either
        return None
    return f"{name} is a picture with a clip's name; rename it to end in {suffix}."


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream, name: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(timestamp, frame) in the order in which frames are shown.

    Raises:
        Damaged: a frame is not whole.
        UserError: timestamps are missing, or transparency cannot be decoded.
    """
    decoder = _alpha_decoder(stream, name)
    is_avi = container.format.name == "avi"
    stamps, last = [], None
    for packet in container.demux(stream):
        if is_avi and packet.size:
            heapq.heappush(stamps, packet.pts)
        try:
            frames = packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
        except av.FFmpegError:
            raise Damaged((last or packet.pts or 0) * stream.time_base) from None
        for frame in frames:
            # avi numbers frames as they are stored; shown in order, each takes the earliest number not yet taken
            if is_avi and not stamps:
                continue
            last = heapq.heappop(stamps) if is_avi else frame.pts
            if last is None:
                raise UserError(f"{name} has frames without a timestamp; export it again as mp4.")
            if frame.is_corrupt:
                raise Damaged(last * stream.time_base)
            yield last, frame


def _alpha_decoder(stream: av.VideoStream, name: str) -> av.CodecContext | None:
    """The decoder that is needed for transparency beside the frames; None where the usual one does."""
    codec = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    marks = {key.lower(): value for key, value in stream.metadata.items()}
    if codec is None or marks.get("alpha_mode", "0") == "0":
        return None
    try:
        decoder = av.CodecContext.create(codec, "r")
    except av.codec.codec.UnknownCodecError:
        raise UserError(f"{name} is transparent, which this PyAV cannot decode (it lacks {codec}); update it with pip "
                        "install -U av, or export the clip over a background.") from None
    decoder.extradata = stream.codec_context.extradata
    return decoder
