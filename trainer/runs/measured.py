"""What the log tells of the videos of previews: motion, and likeness to the training pictures."""

from __future__ import annotations

from collections.abc import Iterable

from .reading import is_number

MEASURED = ("motion", "base_motion", "likeness", "base_likeness")
"""Fields of Previewed with a number for each video; logs from before these were measured lack them."""


def measured(line: dict) -> dict[str, list[float | None]]:
    """A list of numbers, which may be empty, for each of MEASURED."""
    lists = {name: found if isinstance(found := line.get(name), list) else [] for name in MEASURED}
    return {name: [value if is_number(value) else None for value in found] for name, found in lists.items()}


def of_video(lines: Iterable[dict], strip: str) -> dict[str, float | None] | None:
    """A number, or None, for each of MEASURED; None where the lines do not tell of that video.

    Args:
        strip: the path of its strip of frames within the run's folder.
    """
    video = strip.removesuffix(".jpg") + ".mp4"
    for line in lines:
        files = line.get("files")
        if line["event"] == "Previewed" and isinstance(files, list) and video in files:
            number = files.index(video)
            return {name: found[number] if number < len(found) else None for name, found in measured(line).items()}
    return None
