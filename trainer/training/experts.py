"""The two experts of Wan2.2 A14B, two models of the same shape: one takes the noise levels above a boundary, the other
those below.

Nothing in a file tells which expert it is, so whoever trains one says so: by the window of noise levels that is chosen,
or by the socket of a pair that it is connected to.
"""

from __future__ import annotations

from dataclasses import replace

from ..base.errors import UserError
from ..lora.made_for import expert_by_name
from ..model.backend import Denoiser
from ..model.family import ModelFamily
from ..settings.training import WHOLE, WINDOWS, ObjectiveConfig

HIGH, LOW = EXPERTS = ("high", "low")
"""The expert for t at and above the boundary, and the one for t below."""

BOUNDARY = 0.875
"""Where the experts of text-to-video change over (Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py)."""

BOUNDARIES = {"Wan2.2 I2V": 0.9, "Wan2.2 Fun-Control": 0.9}
"""Where those of other families do, by the family's name (wan/configs/wan_i2v_A14B.py; VideoX-Fun has 0.9 too)."""


def expert_of(objective: ObjectiveConfig) -> str:
    """Which expert is trained, one of EXPERTS; "" where the window does not say."""
    return dict(zip(WINDOWS, ("", *EXPERTS), strict=True))[objective.window]


def of_expert(objective: ObjectiveConfig, expert: str) -> ObjectiveConfig:
    """The settings of one expert of a pair.

    Raises:
        UserError: they choose a window themselves.
    """
    if objective.window != WHOLE:
        raise UserError(f"window is {objective.window} in Timestep and Loss Settings, but with model_low each expert "
                        "is trained in its own; set window to whole.")
    return replace(objective, window=WINDOWS[1 + EXPERTS.index(expert)])


def in_numbers(objective: ObjectiveConfig, family: ModelFamily) -> ObjectiveConfig:
    """The settings with the window in min_t and max_t, which counted inside it, and its boundary in numbers.

    Raises:
        UserError: min_t and max_t leave nothing of the window.
    """
    if objective.window == WHOLE:
        return replace(objective, boundary=0.0)
    boundary = objective.boundary or BOUNDARIES.get(family.name, BOUNDARY)
    low, high = (boundary, 1.0) if expert_of(objective) == HIGH else (0.0, boundary)
    least, most = max(objective.min_t, low), min(objective.max_t, high)
    if least >= most:
        raise UserError(f"min_t and max_t are {objective.min_t:g} and {objective.max_t:g}, which leaves nothing of the "
                        f"{objective.window}'s noise levels, {low:g} to {high:g}; choose them inside.")
    return replace(objective, boundary=boundary, min_t=least, max_t=most)


def note_of_name(objective: ObjectiveConfig, model_file: str) -> str:
    """A sentence where the name of a model's file tells of an expert, and the settings of the other one or of none."""
    told, expert = expert_by_name(model_file), expert_of(objective)
    if told == expert or not told:
        return ""
    if expert:
        return f"By its file's name the model is the {told}-noise expert, but it is trained as the {expert}-noise one."
    if (objective.min_t, objective.max_t) != (0.0, 1.0):
        return ""
    return (f"By its file's name the model is the {told}-noise expert of Wan2.2 A14B, and it is trained on all noise "
            f"levels; set window to {told} expert in Timestep and Loss Settings.")


def check_pair(high: Denoiser, low: Denoiser) -> None:
    """UserError where two models, named as the inputs of the node are, cannot be the experts of one pair."""
    if high.family.name != low.family.name:
        raise UserError(f"model is {high.family.name}, model_low is {low.family.name}; connect the two experts of one "
                        "Wan2.2 A14B.")
    sizes, others = high.linear_sizes(), low.linear_sizes()
    if sizes != others:
        differing = sorted(name for name in sizes.keys() | others.keys() if sizes.get(name) != others.get(name))
        raise UserError(f"model and model_low have other shapes, such as {differing[0]}, "
                        f"{_shape(sizes.get(differing[0]))} and {_shape(others.get(differing[0]))}; connect the two "
                        "experts of one Wan2.2 A14B.")


def check_names(files: dict[str, str]) -> None:
    """UserError where the names of both files of a pair, by the expert they are trained as, tell of the other one."""
    if (expert_by_name(files[HIGH]), expert_by_name(files[LOW])) == (LOW, HIGH):
        raise UserError(f"By their names {files[HIGH]} is the low-noise expert and {files[LOW]} the high-noise one; "
                        "swap model and model_low.")


def _shape(size: tuple[int, int] | None) -> str:
    return "none" if size is None else f"{size[0]} x {size[1]}"
