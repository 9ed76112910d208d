"""Compare Checkpoints: the same prompts and seed with each checkpoint of a run, as one labelled grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.samplers
import torch
from comfy_api.latest import io
from PIL import Image

from ..trainer.base.errors import UserError
from ..trainer.runs import checkpoints as run_checkpoints
from .backend import paths, runs
from .lora import apply
from .media import cells, grid
from .media.cells import Cell
from .media.sampling import FAMILY, MAX_FRAMES, Sampling, check_frames, connected, decode, sample
from .media.videos import write_mp4
from .page.clip_progress import ClipProgress
from .page.shown import video_output


class CompareCheckpoints(io.ComfyNode):
    """Samples the same prompts with each checkpoint, so that the best one can be chosen by eye."""

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
                io.String.Input("checkpoints", default=run_checkpoints.ALL, tooltip="Which checkpoints, by their "
                                "steps (the numbers in the names of the run's folders step_000100), not by epochs: "
                                "all, last 4, newest, best, or a list such as 100, 200, best."),
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
            check_frames(1 if frames is None else frames, MAX_FRAMES)
            cells.read_strengths("1" if strengths is None else strengths)
            runs.check(run, checkpoints)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=None, checkpoints=None, **_inputs) -> str:
        """Changes when the widgets name other checkpoints, or one of them was rewritten."""
        return runs.fingerprint_of_checkpoints(run, checkpoints)

    @classmethod
    def execute(
        cls, model, run, positive, vae, checkpoints, strengths, include_base, sampler_name, scheduler,
        positive_2=None, positive_3=None, **sampling
    ) -> io.NodeOutput:
        check_frames(sampling["frames"], MAX_FRAMES)
        texts, shared = connected(positive, positive_2, positive_3), Sampling(**sampling)
        found = run_checkpoints.checkpoints(runs.run_folder(run))
        rows = cells.plan(len(texts), found.some(checkpoints), cells.read_strengths(strengths), include_base)

        def sampled(model, cell: Cell, callback: Callable) -> torch.Tensor:
            return sample(model, texts[cell.prompt], shared, sampler_name, scheduler, callback)

        labels = {cell: _label(cell, found) for cell in cells.different(rows)}
        progress = ClipProgress(cls.hidden, len(labels), shared.steps)
        latents = _latents(model, found.run, labels, sampled, progress)
        size = cells.panel_size(rows, shared.height, shared.width)
        groups = cells.groups(rows, _panels(vae, latents, labels, size, progress))
        return _written(cls.hidden, groups)


def _label(cell: Cell, found: run_checkpoints.Checkpoints) -> str:
    return "base" if cell.step is None else f"{found.label(cell.step)}, strength {cell.strength:g}"


def _latents(
    model, run: Path, labels: dict[Cell, str], sampled: Callable, progress: ClipProgress
) -> dict[Cell, torch.Tensor]:
    """The latent of each cell.

    All are sampled before any is decoded, so that the VAE replaces the model in memory only once; those of one
    checkpoint and strength follow each other, so that each LoRA is applied once.
    """
    latents = {}
    for step, strength in dict.fromkeys((cell.step, cell.strength) for cell in labels):
        applied = model if step is None else apply(model, run_checkpoints.load(run, step), strength)[0]
        for cell in [cell for cell in labels if (cell.step, cell.strength) == (step, strength)]:
            progress.begin("sampling", len(latents) + 1, labels[cell])
            latents[cell] = sampled(applied, cell, progress.advance)
        del applied  # so that there are never two patched models at a time
    return latents


def _panels(
    vae, latents: dict[Cell, torch.Tensor], labels: dict[Cell, str], size: tuple[int, int], progress: ClipProgress
) -> dict[Cell, grid.Panel]:
    """Each clip decoded and labelled; removes each latent from its dict, to free memory."""
    panels = {}
    for number, (cell, label) in enumerate(labels.items(), 1):
        progress.begin("decoding", number, label)
        panels[cell] = grid.Panel(label, grid.scaled(decode(vae, latents.pop(cell), label), size))
        progress.advance()
    progress.end()
    return panels


def _written(hidden, groups: list[grid.Group]) -> io.NodeOutput:
    """Write the grid as mp4 and its strip as jpg beside it; the node's output."""
    video, strip_HW3 = paths.new_video_file("checkpoints"), grid.strip(groups)
    picture = video.with_suffix(".jpg")
    write_mp4(video, grid.frames(groups), FAMILY.fps)
    Image.fromarray(strip_HW3).save(picture, quality=90)
    height, width = next(grid.frames(groups)).shape[:2]
    panels = [panel for group in groups for row in group.rows for panel in row]
    data = {"video": paths.saved_result(video), "strip": paths.saved_result(picture),
            "labels": [panel.label for panel in panels], "fps": FAMILY.fps, "frames": len(panels[0].clip_FHW3),
            "width": width, "height": height}
    return video_output(hidden, video, data, torch.from_numpy(strip_HW3)[None].float() / 255)
