"""Train Wan LoRA: the node, and `train`, which shows a run of trainer/training/run.py in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..trainer.base.errors import UserError
from ..trainer.base.switches import kept_switches, own_switches
from ..trainer.encoded.cache import CachedDataset
from ..trainer.job.configs import train_config
from ..trainer.lora.file import LoraStateDict
from ..trainer.runs.folder import check_name
from ..trainer.settings.presets import CUSTOM, PRESETS, overruled
from ..trainer.settings.training import AS_SAMPLED, BY_TURNS, ORDERS, ObjectiveConfig, TrainConfig
from ..trainer.training.experts import HIGH, LOW
from ..trainer.training.run import Run
from . import pair, sockets
from .advanced import marked
from .backend import named, paths
from .backend.denoiser import ComfyDenoiser
from .lora import resolve
from .media.previewer import PreviewConfig, Previewer, PreviewSize, check, is_low_expert, sigmas_of, to_pictures_of
from .page.live import Live, num_stopped
from .page.pair_live import PairLive


class TrainWanLoRA(io.ComfyNode):
    """Train on the model ComfyUI has loaded, and leave that model as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_TrainWanLoRA",
            display_name="Train Wan LoRA",
            category="WanTune",
            description="Trains a LoRA on the very Wan model that is loaded; the model itself is not changed.",
            inputs=marked("WanTune_TrainWanLoRA", [
                io.Model.Input("model", tooltip="A Wan2.1 or Wan2.2 model (Load Diffusion Model), fp16, bf16, "
                               "fp32 or fp8. LoRAs already applied to it are trained on top of."),
                sockets.Cache.Input("cache", tooltip="From Cache Latents."),
                io.String.Input("run_name", default="my_lora", tooltip="Names the run's folder in output/wantune."),
                io.Int.Input("epochs", default=20, min=1, max=100000, optional=True,
                             tooltip="Passes over all samples x repeats."),
                io.Int.Input("max_steps", default=0, min=0, max=10_000_000, optional=True,
                             tooltip="Stop after so many steps; 0 = after all epochs."),
                io.Int.Input("batch_size", default=1, min=0, max=256, optional=True, tooltip="Pictures a step; 1 is "
                             "what most recipes use. 0: as many as keep the card busy and fit without a slower memory "
                             "plan. A step then learns from the mean of more pictures at the same rate, and an epoch "
                             "has fewer steps."),
                io.Float.Input("learning_rate", default=1e-4, min=0.0, max=1.0, step=1e-5, round=False, optional=True,
                               tooltip="How far a step goes; 1e-4 with alpha = rank suits most."),
                io.Int.Input("rank", default=32, min=1, max=1024, optional=True, tooltip="Size of the LoRA: 16-32 for "
                             "a person, more learns more and forgets more."),
                io.Float.Input("alpha", default=32.0, min=0.0, max=4096.0, step=1.0, optional=True, tooltip="The "
                               "LoRA's strength is alpha / rank while it is trained; leave it equal to rank, as 0 "
                               "does by itself."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True,
                             control_after_generate=False, tooltip="Same seed, same LoRA."),
                io.Boolean.Input("gradient_checkpointing", default=True, optional=True, tooltip="On: as much is "
                                 "kept of the forward pass as fits, and the rest is computed again. Off: all of it."),
                _preset_input(),
                io.Boolean.Input("restart", default=False, optional=True, tooltip="Begin anew in a second attempt "
                                 "beside the first, which stays; queueing again goes on with it. Off: the newest "
                                 "attempt goes on, or is loaded if it is finished."),
                io.Int.Input("attempt", default=0, min=0, max=9999, optional=True, tooltip="0: the newest attempt. 1, "
                             "2, 3 ...: that one, begun if there is none yet. Only Delete in Runs deletes one."),
                io.Boolean.Input("deterministic", default=False, optional=True, tooltip="On a CUDA card the same seed "
                                 "gives the same LoRA only about; on, bit for bit, with a slower attention. ComfyUI "
                                 "must be started with --deterministic. On a CPU it is so anyway."),
                io.MultiType.Input("continue_from", types=[io.LoraModel, io.String], optional=True, tooltip="A LoRA of "
                                   "any trainer to begin with, or a name of ComfyUI's LoRA lists; rank and alpha are "
                                   "then its own."),
                *_settings_inputs(),
                *_pair_inputs(),
            ]),
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Apply LoRA and Save LoRA."),
                io.LossMap.Output(display_name="loss", tooltip="The loss of each step, for Plot Loss Graph."),
                io.String.Output(display_name="run", tooltip="The run's folder, with its log; of a pair, that of the "
                                 "high-noise expert."),
                io.LoraModel.Output(display_name="lora_low", tooltip="Of the low-noise expert; nothing without "
                                    "model_low."),
                io.String.Output(display_name="run_low", tooltip="The folder of its run."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        known = {name: value for name, value in inputs.items() if value is not None}
        try:
            check_name(known.pop("run_name", "linked"))
            pair.check_order(known.get("order", BY_TURNS))
            for name in ("restart", "attempt", "previews", "model", "cache", "continue_from", *pair.INPUTS):
                known.pop(name, None)
            train_config(**known)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> int:
        """Changes after Stop, so that ComfyUI runs the node again, which continues the run."""
        return num_stopped()

    @classmethod
    def execute(
        cls, model, cache, run_name, restart=False, attempt=0, previews=None, preset=CUSTOM, continue_from=None,
        model_low=None, order=BY_TURNS, continue_from_low=None, **settings
    ) -> io.NodeOutput:
        if remark := overruled(preset, settings):
            Live.say(remark)
        settings["objective"] = as_sampled(settings.get("objective"), previews)
        config = train_config(preset, **settings)
        high, low = experts_of(cls.hidden, model, continue_from, model_low, continue_from_low)
        if low is None:
            lora, losses, folder = train(model, cache, run_name, config, Live(cls.hidden), restart, previews,
                                         high.continued, attempt, high.file)
            return io.NodeOutput(lora, {"loss": losses}, str(folder), None, None)
        both = {HIGH: high, LOW: low}
        found = pair.train(both, cache, run_name, config, PairLive(cls.hidden), order, restart, previews, attempt)
        losses = [*found[HIGH].losses, *found[LOW].losses]  # step by step they would jump between the windows
        return io.NodeOutput(found[HIGH].lora, {"loss": losses}, found[HIGH].folder, found[LOW].lora, found[LOW].folder)


def experts_of(hidden, model, continue_from, model_low, continue_from_low) -> tuple[pair.Expert, pair.Expert | None]:
    """What is connected as the model, or the high-noise expert, and as the low-noise one; None where there is none.

    Raises:
        UserError: there is a LoRA for a low-noise expert, but no such model.
    """
    if model_low is not None:
        return (_expert(hidden, "model", model, continue_from),
                _expert(hidden, "model_low", model_low, continue_from_low))
    if continue_from_low is not None:
        raise UserError("continue_from_low is connected, but not model_low; connect the low-noise expert, or use "
                        "continue_from.")
    return _expert(hidden, "model", model, continue_from), None


def _expert(hidden, socket: str, model, continue_from) -> pair.Expert:
    """A MODEL with the name of its file and the LoRA that is continued on it."""
    continued = resolve(continue_from) if continue_from is not None else None
    return pair.Expert(model=model, file=named.file_of(model, hidden, socket), continued=continued)


def _preset_input() -> io.Combo.Input:
    """The widget `preset`. It fills in other widgets in the page (web/training/presets.js), and in an API prompt those
    that are left out."""
    preset = io.Combo.Input("preset", options=[CUSTOM, *PRESETS], default="person, pictures", optional=True,
                            tooltip="Fills in the other widgets: the numbers of the article WanTune began with, a "
                            "person, a style, motion, or a quick try.")
    preset.extra_dict = {**preset.extra_dict, "presets": PRESETS}  # inputs take no such argument in ComfyUI 0.3.75
    return preset


def _settings_inputs() -> list:
    return [
        sockets.AdapterChoice.Input("adapter", optional=True, tooltip="From Adapter Settings."),
        sockets.Optimizer.Input("optimizer", optional=True, tooltip="From Optimizer Settings."),
        sockets.Objective.Input("objective", optional=True, tooltip="From Timestep and Loss Settings."),
        sockets.Validation.Input("validation", optional=True, tooltip="From Validation and Checkpoint Settings."),
        sockets.Previews.Input("previews", optional=True, tooltip="From Preview Settings."),
        sockets.Memory.Input("memory", optional=True, tooltip="From Memory Settings."),
    ]


def _pair_inputs() -> list:
    return [
        io.Model.Input("model_low", optional=True, tooltip="The low-noise expert of Wan2.2 A14B, where model is the "
                       "high-noise one: a LoRA is trained for each, in its own noise levels."),
        io.Float.Input("boundary", default=0.0, min=0.0, max=0.999, step=0.005, round=False, optional=True,
                       tooltip="The noise level between the experts of Wan2.2; 0 = the model's own: 0.875, and 0.9 for "
                       "image-to-video."),
        io.Combo.Input("order", options=list(ORDERS), default=BY_TURNS, optional=True, tooltip="With "
                       "model_low. by turns: both grow together, and changing models takes at most 5 % of the time. "
                       "high, then low: needs less memory."),
        io.MultiType.Input("continue_from_low", types=[io.LoraModel, io.String], optional=True, tooltip="As "
                           "continue_from, for model_low."),
    ]


def as_sampled(objective: ObjectiveConfig | None, previews: PreviewConfig | None) -> ObjectiveConfig | None:
    """With the noise levels of the previews, where it is these that are to be trained on."""
    if objective is None or previews is None or objective.timesteps != AS_SAMPLED:
        return objective
    # they are part of what a run is, and must not differ by what another version of torch rounds
    return replace(objective, sigmas=tuple(round(level, 6) for level in sigmas_of(previews)))


def train(
    model, dataset: CachedDataset, run_name: str, config: TrainConfig, live: Live, restart: bool = False,
    previews: PreviewConfig | None = None, continued: Mapping[str, torch.Tensor] | None = None, attempt: int = 0,
    model_file: str = "",
) -> tuple[LoraStateDict, list[float], str]:
    """Train a MODEL's LoRA, or load it where the same run was finished before.

    Args:
        model: a MODEL.
        live: shows the run, and tells when the user wants it to stop.
        continued: a LoRA of any trainer to begin with; rank and alpha are then its own.
        restart, attempt: as of `Run`.
        model_file: the name of the file the model was loaded from, "" if unknown.

    Returns:
        The LoRA, the finite loss of each step, and the run's folder.

    Raises:
        UserError: the model cannot be trained, or the dataset or `continued` was made for another model.
    """
    denoiser = ComfyDenoiser(model)
    denoiser.compile, denoiser.products = config.memory.compile, config.memory.products
    if previews:
        check(previews, denoiser)
    shown = PreviewSize(previews, denoiser) if previews else None
    switches = kept_switches()
    # ComfyUI runs nodes in inference mode, whose tensors cannot be trained on, nor those of a checkpoint
    with torch.inference_mode(False), own_switches(), Run(
            denoiser, dataset, run_name, config, paths.runs_folder(), continued, restart, attempt, model_file,
            shown) as run:
        live.describe(run.folder, run.base_model, (*denoiser.notes, *run.notes), run.is_finished)
        for note in run.notes:
            live.say(note)
        if run.is_finished:
            live.say(f"trained before: {run.steps} steps, loaded from {run.folder.path.name}")
            return run.lora, run.losses, str(run.folder.path)
        previewer = previews and Previewer(
            previews, denoiser, run.folder.path, switches, is_low_expert(previews, model),
            to_pictures=to_pictures_of(dataset, previews))
        live.say(run.memory_plan(previewer).told())
        live.describe(run.folder, run.base_model, (*denoiser.notes, *run.notes))
        with live.running(), closing(run.events(previewer)) as events:
            for event in events:
                live.publish(event)
                run.stop = live.is_stop_asked()
        return run.lora, run.losses, str(run.folder.path)
