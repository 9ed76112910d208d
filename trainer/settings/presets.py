"""Starting points: each only fills in inputs of Train Wan LoRA that are not set, and all can be changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from ..base.errors import UserError

CUSTOM = "custom"
"""No preset: the inputs stay as the user set them."""

PRESETS: dict[str, dict[str, float | int]] = {
    # The article WanTune began with: 8 pictures x 10 repeats, 400 epochs, stopped by hand at 390 (31,200 steps). It
    # used diffusion-pipe; learning rate, rank and batch size are those of its example (examples/main_example.toml).
    "seed article": {"epochs": 400, "max_steps": 0, "batch_size": 1, "learning_rate": 2e-5, "rank": 32, "alpha": 32},
    # 10 to 15 pictures x 10 repeats: some 2,400 steps at five times the article's learning rate, as most trainers do.
    "person, pictures": {"epochs": 20, "max_steps": 0, "batch_size": 1, "learning_rate": 1e-4, "rank": 32, "alpha": 32},
    # A style is in every picture, so more of them need fewer epochs, and a lower rank overfits less to what they show.
    "style, pictures": {"epochs": 10, "max_steps": 0, "batch_size": 1, "learning_rate": 1e-4, "rank": 16, "alpha": 16},
    # Clips have nine and more times the tokens: each step teaches more and takes longer. Set shift to 3 in Timestep and
    # Loss Settings: motion is decided at high noise levels.
    "motion, clips": {"epochs": 15, "max_steps": 0, "batch_size": 1, "learning_rate": 8e-5, "rank": 32, "alpha": 32},
    # Enough to see whether data and trigger word are right.
    "quick try": {"epochs": 100, "max_steps": 300, "batch_size": 1, "learning_rate": 2e-4, "rank": 16, "alpha": 16},
}


def fill(preset: str, given: Mapping[str, object]) -> dict[str, object]:
    """The inputs of Train Wan LoRA: those given, and of the others what the preset says of them.

    Raises:
        UserError: there is no such preset.
    """
    return {**_values(preset), **given}


def overruled(preset: str, given: Mapping[str, object]) -> str:
    """A sentence about the inputs that are given other values than the preset's; "" if there are none."""
    others = {name: value for name, value in _values(preset).items() if given.get(name, value) != value}
    if not others:
        return ""
    used = ", ".join(f"{name} {given[name]:g} (preset {value:g})" for name, value in others.items())
    return f'The preset "{preset}" is overruled by what is set beside it: {used}.'


def _values(preset: str) -> dict[str, float | int]:
    if preset != CUSTOM and preset not in PRESETS:
        raise UserError(f"preset is {preset!r}; choose one of {', '.join([CUSTOM, *PRESETS])}.")
    return PRESETS.get(preset, {})
