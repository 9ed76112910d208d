"""How much a video moves, and what is said of a video beside that of the model without the LoRA.

Shape legend: F frames, H height, W width, 3 colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...trainer.runs.events import Previewed


def motion(pixels_FHW3: np.ndarray) -> float | None:
    """Mean change of a pixel's colours from one frame to the next, in levels of 0..255; None for a picture."""
    if len(pixels_FHW3) < 2:
        return None
    changes = [np.abs(after.astype(np.int16) - before).mean()
               for before, after in zip(pixels_FHW3, pixels_FHW3[1:], strict=False)]
    return float(np.mean(changes))


def told(
    motion: float | None, base_motion: float | None, likeness: float | None, base_likeness: float | None
) -> str:
    """Such as "likeness 0.71 (base 0.58), motion 0.90 of base"; "" where nothing is known."""
    base = "" if base_likeness is None else f" (base {base_likeness:.2f})"
    parts = [] if likeness is None else [f"likeness {likeness:.2f}{base}"]
    if motion is not None and base_motion:
        parts.append(f"motion {motion / base_motion:.2f} of base")
    return ", ".join(parts)


def told_of(event: Previewed) -> str:
    """The same of each video of a preview, by its prompt where there are several."""
    def at(values: Sequence[float | None], number: int) -> float | None:
        return values[number] if number < len(values) else None

    found = [told(*(at(values, number) for values in (
        event.motion, event.base_motion, event.likeness, event.base_likeness))) for number in range(len(event.files))]
    if len(found) == 1:
        return found[0]
    return "; ".join(f"prompt {number}: {each}" for number, each in enumerate(found, 1) if each)
