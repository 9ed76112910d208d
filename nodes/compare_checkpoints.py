"""Compare Checkpoints: the same prompts and seed with each checkpoint of a run, as one labelled grid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..trainer.base.errors import UserError
from ..trainer.runs import checkpoints as run_lora
from ..trainer.settings.data import SEPARATORS
from .compare_videos import new_video, shown_video
from .load_run import run_folder, seals
from .lora import apply
from .media import grid
from .media.side_by_side import write_mp4
from .page.live import show_text

FPS = 16

MAX_CELLS = 60
"""More than one can look at."""

MAX_FRAMES = 1025

SECONDS_BETWEEN_TEXTS = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One clip of the grid."""

    prompt: int
    """Counted from 0."""
    step: int | None
    """Of the checkpoint; None is the model without it."""
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How each clip is sampled; the same for all."""

    positive: list
    """CONDITIONING of each prompt."""
    negative: list
    width: int
    height: int
    frames: int
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


class CompareCheckpoints(io.ComfyNode):
    """Which checkpoint is best, at a look."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_CompareCheckpoints",
            display_name="Compare Checkpoints",
            category="WanTune",
            description="Samples your prompts with each checkpoint of a run, from the same seed, into one labelled "
                        "grid video and a picture strip, saved in output/wantune.",
            inputs=[
                io.Model.Input("model", tooltip="The model you sample with, without the run's LoRA: after "
                               "ModelSamplingSD3, for example."),
                io.String.Input("run", default="", tooltip="The run output of Train Wan LoRA or Load Run LoRA, or "
                                "the name of the run's folder in output/wantune, such as my_lora-1a2b3c4d."),
                io.Conditioning.Input("positive", tooltip="A prompt with the trigger word, from CLIP Text Encode."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you sample with."),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE you sample with."),
                io.String.Input("checkpoints", default=run_lora.ALL, tooltip="Which checkpoints, by their steps (the "
                                "numbers in the names of the run's folders step_000100), not by epochs: all, last 4, "
                                "newest, best, or a list such as 100, 200, best."),
                io.String.Input("strengths", default="1.0", tooltip="The LoRA's strengths, such as 0.7, 1.0; each "
                                "checkpoint is sampled with each."),
                io.Boolean.Input("include_base", default=True, tooltip="Also sample the model without the LoRA."),
                io.Int.Input("width", default=448, min=16, max=4096, step=16, tooltip="Of each clip, in pixels."),
                io.Int.Input("height", default=256, min=16, max=4096, step=16, tooltip="Of each clip, in pixels."),
                io.Int.Input("frames", default=17, min=1, max=MAX_FRAMES, step=4,
                             tooltip="Of each clip; 1 is a picture."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="The same for every clip."),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Of the sampler, as in KSampler."),
                io.Float.Input("cfg", default=6.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="As in KSampler; 1 halves the time."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="uni_pc",
                               tooltip="The sampler, as in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple",
                               tooltip="The noise levels of the steps, as in KSampler."),
                io.Conditioning.Input("positive_2", optional=True, tooltip="A second prompt to sample."),
                io.Conditioning.Input("positive_3", optional=True, tooltip="A third prompt to sample."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The grid, as saved."),
                io.Image.Output(display_name="strip", tooltip="A row of frames of each clip, as one picture."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run=None, checkpoints=None, strengths=None, frames=None):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        try:
            check_frames(1 if frames is None else frames)
            read_strengths("1" if strengths is None else strengths)
            if checkpoints is not None:
                run_lora.parse(checkpoints, "checkpoints")
            if run is not None:
                found = run_lora.checkpoints(run_folder(run))
                if checkpoints is not None:
                    found.some(checkpoints)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=None, checkpoints=None, **_inputs) -> str:
        """Changes when other checkpoints are meant, or one was written anew."""
        return seals(run, checkpoints)

    @classmethod
    def execute(
        cls, model, run, positive, negative, vae, checkpoints, strengths, include_base, positive_2=None,
        positive_3=None, **inputs
    ) -> io.NodeOutput:
        check_frames(inputs["frames"])
        prompts = [prompt for prompt in (positive, positive_2, positive_3) if prompt is not None]
        found = run_lora.checkpoints(run_folder(run))
        rows = plan(len(prompts), found.some(checkpoints), read_strengths(strengths), include_base)
        panels = _sampled(model, vae, found, rows, Sampling(positive=prompts, negative=negative, **inputs), cls.hidden)
        groups = _groups(rows, panels)
        path, saved = new_video("checkpoints")
        write_mp4(path, grid.frames(groups), FPS)
        strip_HW3 = grid.strip(groups)
        Image.fromarray(strip_HW3).save(path.with_suffix(".jpg"), quality=90)
        data = _described(path, saved, groups, inputs["frames"])
        return shown_video(cls.hidden, path, saved, data, torch.from_numpy(strip_HW3)[None].float() / 255)


def check_frames(frames: int) -> None:
    """Raises UserError for a length that Wan cannot make."""
    if not 1 <= frames <= MAX_FRAMES or frames % 4 != 1:
        raise UserError(f"frames is {frames}; Wan takes 4n+1 frames from 1 to {MAX_FRAMES}, for example 17.")


def read_strengths(text: str) -> tuple[float, ...]:
    """"0.7, 1.0" as numbers, each once.

    Raises:
        UserError: something else is in it, or nothing.
    """
    parts = [part.strip() for part in SEPARATORS.split(text) if part.strip()]
    try:
        found = tuple(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(strength) and abs(strength) <= 20 for strength in found):
        raise UserError(f"strengths is {text!r}; give numbers from -20 to 20, such as 0.7, 1.0.")
    return found


def plan(num_prompts: int, steps: tuple, strengths: tuple, include_base: bool) -> list[list[list[Cell]]]:
    """The grid: for each prompt a row for each strength, of the base model and every checkpoint.

    The base model's clip is the same in each row of a prompt, and sampled once.

    Raises:
        UserError: more than MAX_CELLS clips.
    """
    base = [None] if include_base else []
    rows = [[[Cell(prompt, step, 1.0 if step is None else strength) for step in (*base, *steps)]
             for strength in strengths] for prompt in range(num_prompts)]
    number = len({cell for prompt in rows for row in prompt for cell in row})
    if number > MAX_CELLS:
        raise UserError(f"That would be {number} clips ({num_prompts} prompts, {len(steps)} checkpoints, "
                        f"{len(strengths)} strengths), and {MAX_CELLS} is the most; choose fewer checkpoints, such as "
                        "last 4, or fewer strengths.")
    return rows


class _Progress:
    """The node's bar over all clips, and a line that says which one it is."""

    def __init__(self, hidden, num_clips: int, steps: int) -> None:
        self._hidden, self._num_clips, self._steps = hidden, num_clips, steps
        self._bar = comfy.utils.ProgressBar(num_clips * (steps + 1), node_id=hidden and hidden.unique_id)
        self._done, self._said = 0, 0.0

    def begin(self, verb: str, number: int, label: str) -> None:
        """Raises ComfyUI's interrupt when the user pressed Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() >= self._said + SECONDS_BETWEEN_TEXTS:
            self._said = time.monotonic()
            show_text(self._hidden, f"{verb} {number} of {self._num_clips}: {label}")

    def advance(self, *_step) -> None:
        """After a step of the sampler, and after a clip was decoded."""
        self._done += 1
        self._bar.update_absolute(self._done)

    def end(self) -> None:
        """Say how much it was."""
        show_text(self._hidden, f"{self._num_clips} clips")


def _sampled(
    model, vae, found: run_lora.Checkpoints, rows: list, sampling: Sampling, hidden
) -> dict[Cell, grid.Panel]:
    """Every clip with its label. All are sampled before any is decoded: the VAE takes the model's place once."""
    cells = list(dict.fromkeys(cell for prompt in rows for row in prompt for cell in row))
    progress = _Progress(hidden, len(cells), sampling.steps)
    latents, labels = {}, {cell: _label(cell, found) for cell in cells}
    for step, strength in dict.fromkeys((cell.step, cell.strength) for cell in cells):
        applied = model if step is None else apply(model, run_lora.load(found.run, step), strength)[0]
        for cell in [cell for cell in cells if (cell.step, cell.strength) == (step, strength)]:
            progress.begin("sampling", len(latents) + 1, labels[cell])
            latents[cell] = sample(applied, cell, sampling, progress.advance)
        del applied  # never two at a time
    size = grid.panel_size(len(_lines(rows)), max(map(len, _lines(rows))), sampling.height, sampling.width)
    panels = {}
    for cell in cells:
        progress.begin("decoding", len(panels) + 1, labels[cell])
        panels[cell] = grid.Panel(labels[cell], grid.shrunk(_decoded(vae, latents.pop(cell), labels[cell]), size))
        progress.advance()
    progress.end()
    return panels


def sample(model, cell: Cell, sampling: Sampling, callback: Callable) -> torch.Tensor:
    """The latent that KSampler gives from Empty HunyuanVideo Latent, bit for bit."""
    shape = (1, 16, (sampling.frames - 1) // 4 + 1, sampling.height // 8, sampling.width // 8)
    latent = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    noise = comfy.sample.prepare_noise(latent, sampling.seed)
    return comfy.sample.sample(
        model, noise, sampling.steps, sampling.cfg, sampling.sampler_name, sampling.scheduler,
        sampling.positive[cell.prompt], sampling.negative, latent, callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=sampling.seed)


def _decoded(vae, latent: torch.Tensor, label: str) -> np.ndarray:
    """pixels_FHW3 uint8."""
    images = vae.decode(latent)
    pixels = images.reshape(-1, *images.shape[-3:]).float().cpu()
    if not torch.isfinite(pixels).all():
        raise UserError(f"The clip of {label} holds values that are not numbers (NaN or infinity); the sampler or the "
                        "VAE overflowed, so try the VAE in fp32, or a lower strength.")
    return (pixels * 255).round().clamp(0, 255).byte().numpy()


def _label(cell: Cell, found: run_lora.Checkpoints) -> str:
    return "base" if cell.step is None else f"{found.label(cell.step)}, strength {cell.strength:g}"


def _lines(rows: list) -> list:
    return [line for prompt in rows for row in prompt for line in grid.wrapped(row)]


def _groups(rows: list, panels: dict[Cell, grid.Panel]) -> list[grid.Group]:
    return [
        grid.Group(f"prompt {number}" if len(rows) > 1 else "",
                   [[panels[cell] for cell in line] for line in _lines([prompt])])
        for number, prompt in enumerate(rows, 1)
    ]


def _described(path: Path, saved: dict, groups: list[grid.Group], frames: int) -> dict:
    height, width = next(grid.frames(groups)).shape[:2]
    labels = [panel.label for group in groups for row in group.rows for panel in row]
    return {"video": dict(saved), "strip": {**saved, "filename": path.with_suffix(".jpg").name}, "labels": labels,
            "fps": FPS, "frames": frames, "width": width, "height": height}
