"""How much a step may take.

Where the code takes more than the goal, what it takes is the limit and the goal stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one step."""

    estimate: tuple[float, float] = (1.0, 1.15)
    """What is planned for, beside the weights, over what is taken: from, to."""
    waits: int = 1
    """Times that the host waits for the card."""
    crossings: float = 2.05
    """Bytes of weights that are moved to the card, over those that do not stay on it."""
    kernels: int | None = None
    dispatches: int | None = None
    total: float | None = None
    """GiB held on the card."""


SLACK = 8 / 1024
"""GiB by which more may be planned for in any case: a tiny model takes as little as that."""

COMFYUI_RESERVES = 0.39
"""GiB (400 MiB) of the card that ComfyUI leaves to the driver and to others (EXTRA_RESERVED_VRAM on Linux)."""


def broken(result: dict, limits: Limits) -> list[str]:
    """A sentence for each limit that a result of `measure` breaks."""
    if "error" in result:
        return [f"{result['error']}: {result['text']}\n{result['trace']}"]
    low, high = limits.estimate
    found = []
    if not low * result["needed"] <= result["estimate"] <= high * result["needed"] + SLACK:
        found.append(f"{result['estimate']} GiB were planned for and {result['needed']} taken, a ratio of "
                     f"{result['estimate_of_truth']}; wanted {low} to {high}")
    if len(result["waits"]) > limits.waits:
        found.append(f"{len(result['waits'])} waits, at most {limits.waits} are wanted: {'; '.join(result['waits'])}")
    for name in ("crossings", "kernels", "dispatches", "total"):
        limit = getattr(limits, name)
        if limit is not None and result[name] > limit:
            found.append(f"{name}: {result[name]}, at most {limit} is wanted")
    if result["wrong_device"]:
        found.append(f"parameters of the adapter are on {', '.join(result['wrong_device'])}")
    if result.get("pins_left"):
        found.append(f"{result['pins_left']} pins were not given back")
    return found
