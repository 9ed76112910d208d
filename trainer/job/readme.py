"""The README of a job: what the other machine needs, the one command, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ROLES = {"model": "the diffusion model", "model_low": "the low-noise expert", "vae": "the VAE",
          "clip": "the text encoder", "clip_vision": "the CLIP vision"}
"""Of models, by their keys in the section models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the README tells of a job."""

    name: str
    """Of its folder."""
    run_name: str
    num_samples: int
    files: int
    """In the folder, and their `bytes`."""
    bytes: int
    models: Mapping[str, tuple[str, int]]
    """Name and bytes of each file that is needed, by its key; 0 bytes where that is not known."""
    elsewhere: Mapping[str, str]
    """Dataset folders that are not included, by their place in the job."""
    has_cache: bool
    is_same_run: bool
    """Whether the graph goes on with it afterwards."""


def readme(told: Told) -> str:
    """The whole text, in Markdown."""
    steps = [
        f"Copy this folder to the other machine: {told.files} files, {_size(told.bytes)}.",
        *_data(told),
        "Install WanTune there, with Python 3.10 or newer: `pip install PATH`, where PATH is a copy of WanTune.",
        _models(told),
        "In this folder, one command:\n\n       wantune train .\n\n   and on several GPUs:\n\n"
        "       accelerate launch -m wantune train .",
        _back(told),
    ]
    lines = [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([f"# {told.name}", "", f"A training job of WanTune: the run {told.run_name} on "
                      f"{told.num_samples} samples.", "", *lines, "",
                      "`job.toml` has the settings and may be edited. `files.json` is what the files are checked by.",
                      ""])


def _data(told: Told) -> list[str]:
    if told.has_cache or not told.elsewhere:
        return []
    copies = "; ".join(f"`{folder}` to `{place}`" for place, folder in told.elsewhere.items())
    return [f"The data is not in this folder. Copy it into it: {copies}. Or write into `job.toml` where it is."]


def _models(told: Told) -> str:
    files = "".join(f"\n   - `{name}`{f', {_size(size)}' if size else ''}: {_ROLES[role]}"
                    for role, (name, size) in told.models.items())
    encoders = ("Neither VAE nor text encoder is needed, since the encoded dataset is included." if told.has_cache else
                "VAE and text encoder are needed, too, since the encoded dataset is not included: write their files "
                "into `job.toml`, under `[models]`, where they are not named here.")
    return f"Put these files into `models`, or write into `job.toml` where they are:{files}\n\n   {encoders}"


def _back(told: Told) -> str:
    after = "the graph it came from goes on with it" if told.is_same_run else "Load Run LoRA takes it"
    return (f"Copy the run back: the folder `{told.run_name}-...` in `output/wantune` there belongs into "
            f"`output/wantune` of ComfyUI. Runs in the sidebar shows it, and {after}.")


def _size(size: int) -> str:
    for unit, bytes_of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_of:
            return f"{size / bytes_of:.1f} {unit}"
    return f"{size} bytes"
