"""Two clips next to each other in one mp4, each under its name.

Knows numpy, Pillow and PyAV, not ComfyUI. Frames go from the clips to the encoder one at a time, so a
long clip needs no more memory than a short one.

Shape legend: F frames, H height, W width, 3 colours.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...trainer.base.files import replacing

MIN_READABLE_WIDTH = 256
"""Narrower pictures are scaled up, so that a label fits above them."""

BT709 = 1
"""The number of this colour standard in H.264. A file that does not name one looks different from
player to player."""


def side_by_side(base_FHW3, tuned_FHW3, labels: tuple[str, str]) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8 with `base` on the left, `tuned` on the right and a label above each.

    Clips are arrays or tensors in main memory, 0..1 floats or 0..255 uint8. Both halves have the size of
    the larger clip; a smaller one is fitted into it, uncropped, on black. A shorter clip holds its last
    frame.
    """
    return _frames(panels(base_FHW3, tuned_FHW3), labels)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames (H, W, 3) uint8 of even size as H.264; a single frame is shown for one second.

    The file appears under its name only when it is complete.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"Compare Videos: fps is {fps}; give a number above 0, such as 16 for Wan2.1.")
    with replacing(Path(path)) as unfinished:
        _encode(unfinished, frames, Fraction(fps).limit_denominator(1001))


def _check_clip(clip, name: str) -> None:
    shape = tuple(getattr(clip, "shape", ()))
    if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape:
        got = f"the shape {shape}" if shape else f"a {type(clip).__name__}"
        raise ValueError(
            f"Compare Videos: '{name}' must be pictures of the shape (frames, height, width, 3) but is "
            f"{got}; connect the IMAGE output of VAE Decode."
        )


@dataclass(frozen=True, slots=True)
class Panels:
    """Two clips brought to one size and one length, which is what makes them comparable frame by frame."""

    clips: tuple
    """Arrays or tensors in main memory, each (F, H, W, 3)."""

    @property
    def frames(self) -> int:
        """Of the longer clip; the shorter one holds its last frame."""
        return max(len(clip) for clip in self.clips)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a panel: even, because H.264 stores colour for squares of 2x2 pixels."""
        return tuple(side + side % 2 for side in self._inner)

    def labels(self, names: tuple[str, str]) -> tuple[str, str]:
        """The names, with the number of frames where the clips differ in it."""
        lengths = [len(clip) for clip in self.clips]
        if lengths[0] == lengths[1]:
            return names
        first, second = (f"{name} ({length} frames)" for name, length in zip(names, lengths, strict=True))
        return first, second

    def of(self, side: int) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8 of one clip, 0 or 1, fitted uncropped on black."""
        clip, name = self.clips[side], ("base", "tuned")[side]
        for index in range(self.frames):
            frame_HW3 = np.zeros((*self.size, 3), np.uint8)
            picture_HW3 = fit(_picture(clip, min(index, len(clip) - 1), name), *self._inner)
            y, x = ((room - taken) // 2 for room, taken in zip(self.size, picture_HW3.shape[:2], strict=True))
            frame_HW3[y : y + picture_HW3.shape[0], x : x + picture_HW3.shape[1]] = picture_HW3
            yield frame_HW3

    @property
    def _inner(self) -> tuple[int, int]:
        height, width = (max(clip.shape[axis] for clip in self.clips) for axis in (1, 2))
        factor = math.ceil(MIN_READABLE_WIDTH / width)
        return height * factor, width * factor


def panels(base_FHW3, tuned_FHW3) -> Panels:
    """Both clips as they are shown. Raises ValueError for what is no clip."""
    clips = (base_FHW3, tuned_FHW3)
    for clip, name in zip(clips, ("base", "tuned"), strict=True):
        _check_clip(clip, name)
    return Panels(clips)


def _frames(shown: Panels, labels: tuple[str, str]) -> Iterator[np.ndarray]:
    strips = [label_strip(label, shown.size[1]) for label in shown.labels(labels)]
    strip_H_2W_3 = np.concatenate(strips, axis=1)
    for pictures in zip(shown.of(0), shown.of(1), strict=True):
        yield np.concatenate([strip_H_2W_3, np.concatenate(pictures, axis=1)])


def _picture(clip, index: int, name: str) -> np.ndarray:
    picture_HW3 = np.asarray(clip[index])[..., :3]
    if picture_HW3.dtype == np.uint8:
        return picture_HW3
    if not np.isfinite(picture_HW3).all():
        raise ValueError(
            f"Compare Videos: frame {index + 1} of '{name}' holds values that are not numbers (NaN or "
            "infinity); the sampler or the VAE overflowed, so try the VAE in fp32 or a LoRA of fewer steps."
        )
    return np.rint(np.clip(picture_HW3, 0, 1) * 255.0).astype(np.uint8)


def fit(picture_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """As large as it can be in this room, in its own proportions."""
    scale = min(height / picture_HW3.shape[0], width / picture_HW3.shape[1])
    if scale == 1:
        return picture_HW3
    # A whole number keeps every pixel a sharp square: what the model drew, not what a filter made of it.
    resample = Image.Resampling.NEAREST if scale.is_integer() else Image.Resampling.LANCZOS
    size = tuple(max(1, round(side * scale)) for side in (picture_HW3.shape[1], picture_HW3.shape[0]))
    return np.asarray(Image.fromarray(picture_HW3).resize(size, resample))


def label_strip(label: str, width: int) -> np.ndarray:
    """A text (H, W, 3) uint8 in the middle of a dark strip of this width, shortened where it is too long."""
    font_size = max(16, width // 28)
    font = ImageFont.load_default(size=font_size)
    height = font_size * 2
    text = " ".join(label.split())
    while text and font.getlength(text) > width - font_size:
        text = text.removesuffix("...")[:-1].rstrip() + "..." if len(text) > 3 else ""
    strip = Image.new("RGB", (width, height), (24, 24, 24))
    ImageDraw.Draw(strip).text((width / 2, height / 2), text, fill=(240, 240, 240), font=font, anchor="mm")
    return np.asarray(strip)


def _encode(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "17"})
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        num_frames = 0
        for frame_HW3 in frames:
            if num_frames == 0:
                stream.height, stream.width = frame_HW3.shape[:2]
            container.mux(stream.encode(_video_frame(frame_HW3)))
            num_frames += 1
        if num_frames == 1:
            for _ in range(round(rate) - 1):
                container.mux(stream.encode(_video_frame(frame_HW3)))
        container.mux(stream.encode())


def _video_frame(frame_HW3: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709")
