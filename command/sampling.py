"""`wantune sample`: videos of prompts without and with a LoRA, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..trainer.adapter.adapters import Adapter
from ..trainer.base.errors import UserError
from ..trainer.base.switches import own_switches
from ..trainer.job.settings import PreviewPlan
from ..trainer.media.side_by_side import side_by_side
from ..trainer.media.videos import write_mp4
from ..trainer.memory.plan import Plan
from ..trainer.model.backend import Denoiser
from ..trainer.model.conditions import KNOWN, TEXT
from ..trainer.model.family import ModelFamily
from ..trainer.runs import history
from ..trainer.runs.checkpoints import checkpoints
from ..trainer.settings.adapter import LoraConfig
from ..trainer.settings.data import BOTH_ENDS, FIRST_FRAME
from ..trainer.settings.training import WINDOWS
from ..trainer.wan_diffusers.sampling import Part, Sampling
from ..trainer.wan_diffusers.sampling import sample as sampled
from . import data, given, worn
from .engine import Engine, conditions_of
from .given import Given
from .previews import Texts, sampling_of
from .terminal import Terminal


@dataclass(slots=True)
class Stage:
    """Some of the steps, by one model."""

    is_low: bool
    lora: Path | None
    """A LoRA file; None for that of the run, or for none."""
    part: tuple[int, int]
    """The step it begins with, and the one before which it ends."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames that an image-to-video model is given."""

    conditions: Mapping[str, torch.Tensor]
    clean_BCFHW: torch.Tensor | None
    """The latent of what stands still, for families that are given it without noise."""


def sample(arguments: argparse.Namespace) -> int:
    """Write a video for each prompt."""
    terminal = Terminal()
    asked, folder = given.of_source(arguments, arguments.source) if arguments.source else (
        given.checked({}, arguments), None)
    plan = asked.settings.previews
    if plan is None:
        raise UserError('No prompt is given; write it with --prompts "...", or as prompts of [preview_settings].')
    paths = _paths(arguments.output, len(plan.prompts))
    sampling_of(plan)  # what is not taken is said before anything is loaded
    engine = Engine(asked.settings.models, data.cache_folder(arguments), terminal.say)
    texts = Texts(plan, engine.text())
    with own_switches():
        videos, family, label = _latents(arguments, asked, folder, engine, texts, terminal)
        codec = engine.codec(family)
        for path, latents in zip(paths, videos, strict=True):
            pixels = [codec.decode(latent_BCFHW[0], path.stem) for latent_BCFHW in latents]
            write_mp4(path, _together(pixels, label), family.fps)
            print(path)
    return 0


def _latents(
    arguments: argparse.Namespace, asked: Given, run: Path | None, engine: Engine, texts: Texts, terminal: Terminal
) -> tuple[list[list[torch.Tensor]], ModelFamily, str]:
    """For each prompt the latents without and, where there is one, with the LoRA; the family; the LoRA's name."""
    plan, label = asked.settings.previews, ""
    sampling, frames = sampling_of(plan), None
    sides = (True, False) if run or arguments.lora or arguments.lora_low else (True,)
    found: list[list[torch.Tensor]] = [[None] * len(sides) for _ in plan.prompts]
    for stage in _stages(arguments, asked):
        role = "model_low" if stage.is_low else "model"
        denoiser = engine.denoiser(role, asked.base_id(role))
        sampling.check(denoiser.family)
        if frames is None:
            frames = _frames(arguments, plan, denoiser, engine)
        adapter, name = _adapter(arguments, stage, run, denoiser)
        label = label or name
        with denoiser.attached(adapter, denoiser.linears(), Plan(), 0):
            for number, text_BLD in enumerate(texts.positive):
                found[number] = [
                    _sampled(denoiser, adapter, is_base, {TEXT.name: text_BLD, **frames.conditions}, texts, sampling,
                             frames, Part(first=stage.part[0], end=stage.part[1], start_BCFHW=before), terminal,
                             f"prompt {number + 1}, {'without' if is_base else 'with'} the LoRA")
                    for is_base, before in zip(sides, found[number], strict=True)]
        family = denoiser.family
        del denoiser, adapter  # before the next one, or the VAE, is loaded
        engine.release()
    return found, family, label


def _sampled(
    denoiser: Denoiser, adapter: Adapter, is_base: bool, conditions: Mapping[str, torch.Tensor], texts: Texts,
    sampling: Sampling, frames: Frames, part: Part, terminal: Terminal, title: str,
) -> torch.Tensor:
    def done(step: int) -> None:
        terminal.progress(step - part.first, part.end - part.first, f"{title}: step {step}/{sampling.steps}")

    arguments = denoiser, conditions, texts.negative_BLD, sampling
    further = {"clean_BCFHW": frames.clean_BCFHW, "part": part, "done": done}
    if not is_base:
        return sampled(*arguments, **further)
    with adapter.switched_off():
        return sampled(*arguments, **further)


def _stages(arguments: argparse.Namespace, asked: Given) -> Sequence[Stage]:
    plan, low = asked.settings.previews, asked.settings.models.model_low
    if not low:
        if arguments.lora_low:
            raise UserError("--lora-low is given without a model_low; give the low-noise expert, too.")
        return [Stage(False, arguments.lora, (0, plan.steps))]
    if not 0 < plan.switch_at_step < plan.steps:
        raise UserError(f"model_low is given, and switch_at_step is {plan.switch_at_step}; give the step of "
                        f"{plan.steps} from which it samples.")
    return [Stage(False, arguments.lora, (0, plan.switch_at_step)),
            Stage(True, arguments.lora_low, (plan.switch_at_step, plan.steps))]


def _adapter(
    arguments: argparse.Namespace, stage: Stage, run: Path | None, denoiser: Denoiser
) -> tuple[Adapter, str]:
    """The adapter, and the LoRA's name; one without effect and "" where there is none."""
    if stage.lora is not None:
        lora = worn.of_file(stage.lora, denoiser)
        return lora.adapter(denoiser, arguments.strength), lora.name
    if run is not None and stage.is_low == _is_low(run):
        known = checkpoints(run)
        step = known.one(arguments.checkpoint)
        lora = worn.of_run(run, step, f"{run.name}, {known.label(step)}")
        return lora.adapter(denoiser, arguments.strength), lora.name
    return Adapter(LoraConfig(rank=1), denoiser.linears(), denoiser.device, 0), ""


def _is_low(run: Path) -> bool:
    """Whether a run trained the low-noise expert."""
    objective = history.read_json(run / "config.json").get("objective", {})
    return bool(objective.get("window") == WINDOWS[2])


def _frames(arguments: argparse.Namespace, plan: PreviewPlan, denoiser: Denoiser, engine: Engine) -> Frames:
    """What the model is given beside the text.

    Raises:
        UserError: it needs frames and none are given, or takes none.
    """
    given_frames = [path for path in (arguments.first_frame, arguments.last_frame) if path is not None]
    kinds = [kind for kind in denoiser.family.conditions if kind.name != TEXT.name]
    needed = [kind for kind in kinds if not kind.is_optional]
    if not given_frames:
        if needed:
            raise UserError(f"{denoiser.family.name} begins with a picture; give it with --first-frame.")
        return Frames({}, None)
    if not kinds or arguments.first_frame is None:
        what = "takes no picture" if not kinds else "needs the first frame where the last is given"
        raise UserError(f"{denoiser.family.name} {what}; " + ("leave --first-frame out." if not kinds else
                        "give --first-frame, too."))
    pixels_FHW3 = np.full((plan.frames, plan.height, plan.width, 3), 128, np.uint8)
    for number, path in ((0, arguments.first_frame), (-1, arguments.last_frame)):
        if path is not None:
            pixels_FHW3[number] = _picture(path, plan)
    encoders = engine.encoders(denoiser.family, BOTH_ENDS if arguments.last_frame else FIRST_FRAME)
    found = conditions_of(pixels_FHW3, denoiser.family, encoders.conditions)
    clean = encoders.codec.encode(pixels_FHW3)[None] if KNOWN.name in found else None
    engine.release()
    return Frames(found, clean)


def _picture(path: Path, plan: PreviewPlan) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB").resize((plan.width, plan.height), Image.Resampling.LANCZOS))
    except OSError as error:
        raise UserError(f"{path} is no picture that can be read ({error}); give a PNG or JPEG.") from None


def _together(pixels: list[np.ndarray], label: str):
    if len(pixels) == 1:
        return pixels[0]
    return side_by_side(pixels[0], pixels[1], ("without", label))


def _paths(output: Path, count: int) -> list[Path]:
    paths = [output if count == 1 else output.with_name(f"{output.stem}_{number}{output.suffix}")
             for number in range(1, count + 1)]
    for path in paths:
        if path.suffix.lower() != ".mp4":
            raise UserError(f"{path} does not end in .mp4; videos are written as mp4.")
        if path.exists():
            raise UserError(f"{path} exists, and no file is overwritten; choose another name with --output.")
        path.parent.mkdir(parents=True, exist_ok=True)
    return paths
