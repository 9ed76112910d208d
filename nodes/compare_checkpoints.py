"""Compare Checkpoints: the same prompts and seed with each checkpoint of a run, as one labelled grid."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.samplers
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..trainer.base.errors import UserError
from ..trainer.media.videos import write_mp4
from ..trainer.runs import checkpoints as run_checkpoints
from ..trainer.runs.checkpoints import Checkpoints
from . import sockets
from .backend import paths, runs
from .backend.applied import apply
from .media import cells, grid
from .media.cells import Cell
from .media.likeness import FRAMES, Likeness, spread
from .media.likeness import check as check_clip_vision
from .media.measured import motion
from .media.sampling import (
    MAX_FRAMES,
    Sampling,
    check,
    check_frames,
    check_vae,
    connected,
    decode,
    family_like,
    sample,
)
from .page.clip_progress import ClipProgress
from .page.shown import video_output

logger = logging.getLogger("wantune")


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
                               "ModelSamplingSD3, for example. Of a pair the high-noise expert."),
                io.String.Input("run", default="", tooltip="The run output of Train Wan LoRA or Load Run LoRA, or "
                                "the name of the run's folder in output/wantune, such as my_lora-1a2b3c4d."),
                io.Conditioning.Input("positive", tooltip="A prompt with the trigger word, from CLIP Text Encode."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you sample with."),
                io.Vae.Input("vae", tooltip="The VAE you sample with."),
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
                io.Model.Input("model_low", optional=True, tooltip="The low-noise expert of a pair, as you sample it, "
                               "without its LoRA."),
                io.Latent.Input("latent", optional=True, tooltip="The latent that your sampler gets, from "
                                "WanImageToVideo or Wan22ImageToVideoLatent for example. Without, an empty one."),
                io.Int.Input("switch_at_step", default=0, min=0, max=10000, optional=True, tooltip="The step from "
                             "which model_low samples, as in the start_at_step of your second KSampler Advanced; 0 = "
                             "there is no model_low."),
                io.String.Input("run_low", default="", optional=True, tooltip="The run whose LoRA is put on model_low: "
                                "the checkpoint of the same step, or the last one before. Empty: model_low stays as "
                                "it is."),
                sockets.Cache.Input("cache", optional=True, tooltip="From Cache Latents, with clip_vision: each clip "
                                    "also says how like these pictures it looks."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="From Load CLIP Vision, with cache. Any CLIP "
                                    "vision will do."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The grid, as saved."),
                io.Image.Output(display_name="strip", tooltip="A row of frames of each clip, as one picture."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run=None, checkpoints=None, strengths=None, frames=None, run_low=None):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        try:
            check_frames(1 if frames is None else frames, MAX_FRAMES)
            cells.read_strengths("1" if strengths is None else strengths)
            runs.check(run, checkpoints)
            if run_low:
                runs.check(run_low, run_checkpoints.ALL)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=None, checkpoints=None, run_low=None, **_inputs) -> str:
        """Changes when the widgets name other checkpoints, or one of them was rewritten."""
        of_low = runs.fingerprint_of_checkpoints(run_low, run_checkpoints.ALL) if run_low else ""
        return runs.fingerprint_of_checkpoints(run, checkpoints) + of_low

    @classmethod
    def execute(
        cls, model, run, positive, vae, checkpoints, strengths, include_base, positive_2=None, positive_3=None,
        model_low=None, run_low="", cache=None, clip_vision=None, **sampling
    ) -> io.NodeOutput:
        check_frames(sampling["frames"], MAX_FRAMES)
        texts, shared = connected(positive, positive_2, positive_3), Sampling(**sampling)
        likeness = _to_pictures(cache, clip_vision, vae, model)
        check(model, model_low, shared)
        check_vae(vae, family_like(model))
        found, low = run_checkpoints.checkpoints(runs.run_folder(run)), _of_low(model_low, run_low)
        rows = cells.plan(len(texts), found.some(checkpoints), cells.read_strengths(strengths), include_base)

        def sampled(models: tuple, cell: Cell, callback: Callable) -> torch.Tensor:
            return sample(*models, texts[cell.prompt], shared, callback)

        labels = {cell: _label(cell, found, low) for cell in cells.different(rows)}
        progress = ClipProgress(cls.hidden, len(labels), shared.steps)
        latents = _latents((model, model_low), (found, low), labels, sampled, progress)
        panels = _panels(vae, latents, labels, cells.panel_size(rows, shared.height, shared.width), progress, likeness)
        return _written(cls.hidden, cells.groups(rows, panels), family_like(model).fps)


def _of_low(model_low, run_low: str) -> Checkpoints | None:
    """The checkpoints for `model_low`; None where it stays as it is."""
    if not run_low:
        return None
    if model_low is None:
        raise UserError("run_low is given, but no model_low to put its LoRA on; connect it, or leave run_low empty.")
    return run_checkpoints.checkpoints(runs.run_folder(run_low))


def _to_pictures(cache, clip_vision, vae, model) -> Likeness | None:
    """None where the likeness to the training pictures is not asked for."""
    if cache is None and clip_vision is None:
        return None
    if cache is None or clip_vision is None:
        given, missing = ("cache", "clip_vision") if clip_vision is None else ("clip_vision", "cache")
        raise UserError(f"{given} is connected, but not {missing}, and likeness needs both; connect it, or leave "
                        f"{given} empty.")
    check_clip_vision(clip_vision, "Compare Checkpoints")
    cached, sampled = cache.family.latent_channels, family_like(model).latent_channels
    if cached != sampled:
        raise UserError(f"The latents of the cache have {cached} channels, those of the model {sampled}; connect the "
                        "cache that the run was trained with.")
    return Likeness(clip_vision, vae, cache)


def _label(cell: Cell, found: Checkpoints, low: Checkpoints | None) -> str:
    if cell.step is None:
        return "base"
    beside = f", low {low.label(low.up_to(cell.step))}" if low else ""
    return f"{found.label(cell.step)}{beside}, strength {cell.strength:g}"


def _latents(
    models: tuple, found: tuple[Checkpoints, Checkpoints | None], labels: dict[Cell, str], sampled: Callable,
    progress: ClipProgress
) -> dict[Cell, torch.Tensor]:
    """The latent of each cell.

    All are sampled before any is decoded, so that the VAE replaces the model in memory only once; those of one
    checkpoint and strength follow each other, so that each LoRA is applied once.
    """
    latents = {}
    for step, strength in dict.fromkeys((cell.step, cell.strength) for cell in labels):
        applied = tuple(model if of is None or step is None else _with_lora(model, of, step, strength)
                        for model, of in zip(models, found, strict=True))
        for cell in [cell for cell in labels if (cell.step, cell.strength) == (step, strength)]:
            progress.begin("sampling", len(latents) + 1, labels[cell])
            latents[cell] = sampled(applied, cell, progress.advance)
        del applied  # so that there are never two patched models at a time
    return latents


def _with_lora(model, found: Checkpoints, step: int, strength: float):
    return apply(model, run_checkpoints.load(found.run, found.up_to(step)), strength)[0]


def _panels(
    vae, latents: dict[Cell, torch.Tensor], labels: dict[Cell, str], size: tuple[int, int], progress: ClipProgress,
    to_pictures: Likeness | None
) -> dict[Cell, grid.Panel]:
    """Each clip decoded, measured and labelled; removes each latent from its dict, to free memory."""
    clips, motions, seen = {}, {}, {}
    for number, (cell, label) in enumerate(labels.items(), 1):
        progress.begin("decoding", number, label)
        clip_FHW3 = decode(vae, latents.pop(cell), label)
        motions[cell], seen[cell] = motion(clip_FHW3), clip_FHW3[spread(len(clip_FHW3), FRAMES)]
        clips[cell] = grid.scaled(clip_FHW3, size)
        progress.advance()
    progress.end()
    likenesses = _likenesses(seen, to_pictures) if to_pictures else {}
    lines = cells.measured(motions, likenesses)
    return {cell: grid.Panel(label, clips[cell], lines[cell]) for cell, label in labels.items()}


def _likenesses(seen: dict[Cell, np.ndarray], to_pictures: Likeness) -> dict[Cell, float | None]:
    found, fault = to_pictures.of(list(seen.values()))
    if fault:
        logger.warning("%s", fault)
    return dict(zip(seen, found, strict=False))


def _written(hidden, groups: list[grid.Group], fps: int) -> io.NodeOutput:
    """Write the grid as mp4 and its strip as jpg beside it; the node's output."""
    video, strip_HW3 = paths.new_video_file("checkpoints"), grid.strip(groups)
    picture = video.with_suffix(".jpg")
    write_mp4(video, grid.frames(groups), fps)
    Image.fromarray(strip_HW3).save(picture, quality=90)
    height, width = next(grid.frames(groups)).shape[:2]
    panels = [panel for group in groups for row in group.rows for panel in row]
    data = {"video": paths.saved_result(video), "strip": paths.saved_result(picture),
            "labels": [panel.label for panel in panels], "fps": fps, "frames": len(panels[0].clip_FHW3),
            "width": width, "height": height}
    return video_output(hidden, video, data, torch.from_numpy(strip_HW3)[None].float() / 255)
