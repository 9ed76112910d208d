"""Adapter, Optimizer, Timestep and Loss, Validation and Checkpoint, and Memory Settings."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.base.errors import UserError
from ..trainer.settings.adapter import ADAPTERS, LoraConfig
from ..trainer.settings.memory import PRODUCTS, SEGMENTS, SWITCH, MemoryConfig
from ..trainer.settings.training import (
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    TIMESTEPS,
    WEIGHTINGS,
    WHOLE,
    WINDOWS,
    ObjectiveConfig,
    OptimizerConfig,
    ValidationConfig,
)
from . import sockets
from .advanced import marked


class _Settings(io.ComfyNode):
    """Base of nodes that make a frozen dataclass, RECORD, from widgets named like its fields."""

    RECORD: type

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        try:
            cls.RECORD(**{name: value for name, value in inputs.items() if value is not None})
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return io.NodeOutput(cls.RECORD(**inputs))


class AdapterSettings(_Settings):
    """What is trained, beside rank and alpha."""

    RECORD = LoraConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_AdapterSettings",
            display_name="Adapter Settings",
            category="WanTune",
            description="Kind of adapter, dropout, and which layers carry it, for Train Wan LoRA.",
            inputs=marked("WanTune_AdapterSettings", [
                io.Combo.Input("kind", options=list(ADAPTERS), default="lora", tooltip="lora suits most and trains "
                               "fastest. rslora: high ranks learn as fast as low ones. lokr: very small files. loha: "
                               "high rank from few numbers, slow."),
                io.Float.Input("dropout", default=0.0, min=0.0, max=0.99, step=0.01, tooltip="Share that is left out "
                               "by chance in training, against learning the pictures by heart; 0.05 to 0.1, 0 = none."),
                io.String.Input("targets", default="all", tooltip="all, attention, or a regular expression for layers "
                                "such as blocks.3.self_attn.q or blocks.3.ffn.0."),
                io.Int.Input("first_block", default=0, min=0, max=1000, tooltip="Leave the blocks before this one."),
                io.Int.Input("last_block", default=-1, min=-1, max=1000, tooltip="Leave those after it; -1 = none."),
                io.Int.Input("lokr_factor", default=16, min=-1, max=1024, tooltip="Of lokr: 4 is a large adapter, 16 a "
                             "small one; -1 = nearest to a square."),
            ]),
            outputs=[sockets.AdapterChoice.Output(display_name="adapter", tooltip="For Train Wan LoRA.")],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return io.NodeOutput(inputs)  # Train Wan LoRA adds rank and alpha, and checks all of it


class OptimizerSettings(_Settings):
    """How a gradient becomes a step."""

    RECORD = OptimizerConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_OptimizerSettings",
            display_name="Optimizer Settings",
            category="WanTune",
            description="Optimizer, learning-rate schedule, accumulation, clipping and moving average, for Train Wan "
                        "LoRA.",
            inputs=marked("WanTune_OptimizerSettings", [
                io.Combo.Input("name", options=list(OPTIMIZERS), default="adamw", tooltip="adamw suits most. prodigy "
                               "finds the learning rate by itself: set learning_rate to 1. lion wants a tenth of "
                               "adamw's rate."),
                io.Float.Input("beta1", default=0.9, min=0.0, max=0.9999, step=0.01, round=False,
                               tooltip="How long the gradient's direction is remembered; adafactor does without."),
                io.Float.Input("beta2", default=0.99, min=0.0, max=0.9999, step=0.001, round=False,
                               tooltip="How long the gradient's size is remembered."),
                io.Float.Input("eps", default=1e-8, min=0.0, max=1.0, step=1e-8, round=False,
                               tooltip="Keeps the division by a tiny gradient finite; adafactor, lion and came do "
                               "without."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=10.0, step=0.01, round=False,
                               tooltip="Pulls the LoRA towards zero."),
                io.Combo.Input("schedule", options=list(SCHEDULES), default="constant", tooltip="How the learning rate "
                               "goes after warm-up: constant, or falling to 0 at the end of the run."),
                io.Int.Input("warmup_steps", default=10, min=0, max=10000, tooltip="Steps over which the learning rate "
                             "rises."),
                io.Int.Input("cycles", default=1, min=1, max=100, tooltip="Restarts of cosine_with_restarts."),
                io.Float.Input("power", default=1.0, min=0.0, max=10.0, step=0.1, tooltip="Of polynomial; 1 is "
                               "linear."),
                io.Int.Input("accumulation", default=1, min=1, max=1024, tooltip="Batches whose gradients make one "
                             "step: as a larger batch, without its memory."),
                io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="A longer gradient is shortened to this; 0 = never."),
                io.Float.Input("ema_decay", default=0.0, min=0.0, max=0.99999, step=0.001, round=False,
                               tooltip="Keep a moving average of the LoRA, for example 0.99; 0 = none."),
                io.Boolean.Input("use_average", default=True, tooltip="Use and save the average, also that of "
                                 "schedule_free; off: what is trained itself."),
            ]),
            outputs=[sockets.Optimizer.Output(display_name="optimizer", tooltip="For Train Wan LoRA.")],
        )


class ObjectiveSettings(_Settings):
    """Which noise levels are trained on, and how their errors count."""

    RECORD = ObjectiveConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_ObjectiveSettings",
            display_name="Timestep and Loss Settings",
            category="WanTune",
            description="Which noise levels are trained on and how their errors count, for Train Wan LoRA. Much noise "
                        "teaches shape and motion, little noise detail.",
            inputs=marked("WanTune_ObjectiveSettings", [
                io.Combo.Input("timesteps", options=list(TIMESTEPS), default="logit_normal", tooltip="How noise levels "
                               "t in 0..1 are drawn: logit_normal around the middle, uniform, mode, beta, or as your "
                               "graph samples (as sampled: connect Preview Settings to Train Wan LoRA)."),
                io.Float.Input("logit_mean", default=0.0, min=-10.0, max=10.0, step=0.1, tooltip="Of logit_normal; "
                               "above 0 means more noise."),
                io.Float.Input("logit_std", default=1.0, min=0.01, max=10.0, step=0.1, tooltip="Of logit_normal: "
                               "width."),
                io.Float.Input("mode_scale", default=1.29, min=-1.0, max=1.75, step=0.01, tooltip="Of mode; above 0 "
                               "favours the middle."),
                io.Float.Input("beta_a", default=1.0, min=0.05, max=20.0, step=0.1, tooltip="Of beta; more means more "
                               "noise."),
                io.Float.Input("beta_b", default=1.0, min=0.05, max=20.0, step=0.1, tooltip="Of beta; more means less "
                               "noise."),
                io.Float.Input("shift", default=1.0, min=0.01, max=100.0, step=0.1, tooltip="Moves all levels to more "
                               "noise, as the sampler's shift does; 3 for motion, 1 = none."),
                io.Boolean.Input("resolution_shift", default=False, tooltip="Shift further for large pictures and "
                                 "clips."),
                io.Float.Input("min_t", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Train on no less noise."),
                io.Float.Input("max_t", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Train on no more noise."),
                io.Boolean.Input("stratified", default=False, tooltip="Spread the levels of a batch evenly."),
                io.Combo.Input("weighting", options=list(WEIGHTINGS), default="none", tooltip="How much a noise level "
                               "counts: none = all alike."),
                io.Combo.Input("loss", options=list(LOSSES), default="mse", tooltip="huber counts large errors less."),
                io.Float.Input("huber_delta", default=1.0, min=1e-6, max=100.0, step=0.1, round=False,
                               tooltip="Errors above this count linearly."),
                io.Float.Input("noise_offset", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Lets brightness be "
                               "learned, at the price of a different noise; usually 0."),
                io.Combo.Input("window", options=list(WINDOWS), default=WHOLE, optional=True, tooltip="For Wan2.2 A14B "
                               "with one model: train only on the noise levels of this expert. min_t and max_t count "
                               "inside it."),
                io.Float.Input("stills_min_t", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Of pictures train on no less noise."),
                io.Float.Input("stills_max_t", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Of pictures train on no more noise: below 1, they teach detail and leave "
                               "motion to clips. Within min_t and max_t, like the three others."),
                io.Float.Input("clips_min_t", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Of clips train on no less noise."),
                io.Float.Input("clips_max_t", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Of clips train on no more noise."),
                io.Float.Input("preserve", default=0.0, min=0.0, max=1000.0, step=0.1, optional=True,
                               tooltip="Holds the model to what it was where the trigger word is not said, so that the "
                               "LoRA changes your concept alone; 0 = off, 1 = as much as what is learned. Try it when "
                               "other people or things begin to look like yours. It makes a step about 2.5 times as "
                               "long; see preserve_every."),
                io.Int.Input("preserve_every", default=4, min=1, max=1000, optional=True, tooltip="Do that in one step "
                             "of so many, which then counts so many times: 4 makes training about 1.4 times as long."),
            ]),
            outputs=[sockets.Objective.Output(display_name="objective", tooltip="For Train Wan LoRA.")],
        )


class ValidationSettings(_Settings):
    """What is measured and written while a run goes on."""

    RECORD = ValidationConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_KeepSettings",
            display_name="Validation and Checkpoint Settings",
            category="WanTune",
            description="How often the held-out files are measured on and checkpoints are written, for Train Wan LoRA. "
                        "None of it changes what is learned, but early_stop ends it.",
            inputs=marked("WanTune_KeepSettings", [
                io.Int.Input("evaluate_epochs", default=1, min=0, max=100000, tooltip="Measure on the held-out files "
                             "(validation_items) after so many epochs; 0 = not by epochs. Costs 13 forward passes for "
                             "each file and, for drift, 6 more for each of the first four."),
                io.Int.Input("evaluate_steps", default=0, min=0, max=10_000_000, tooltip="And after so many steps; 0 = "
                             "not by steps."),
                io.Int.Input("early_stop", default=0, min=0, max=10000, tooltip="End the run after so many "
                             "measurements without a better one; 0 = never."),
                io.Int.Input("every_epochs", default=0, min=0, max=100000, tooltip="Write a checkpoint after so many "
                             "epochs; 0 = not by epochs."),
                io.Int.Input("every_steps", default=0, min=0, max=10_000_000, tooltip="And after so many steps; 0 = "
                             "not by steps."),
                io.Float.Input("every_minutes", default=1.0, min=0.0, max=10000.0, step=0.5, tooltip="And after so "
                               "many minutes, or more where saving takes long (at most 1 % of the time); 0 = not by "
                               "time."),
                io.Int.Input("keep_last", default=3, min=1, max=10000, tooltip="So many checkpoints stay, and the "
                             "best."),
            ]),
            outputs=[sockets.Validation.Output(display_name="validation", tooltip="For Train Wan LoRA.")],
        )


class MemorySettings(_Settings):
    """What is kept of the forward pass, where it is not to be chosen by itself."""

    RECORD = MemoryConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_MemorySettings",
            display_name="Memory Settings",
            category="WanTune",
            description="Pins parts of the memory plan, for Train Wan LoRA. Without it, and with auto, the fastest "
                        "plan that fits is chosen. Only products changes what is learned.",
            inputs=marked("WanTune_MemorySettings", [
                io.Int.Input("whole_blocks", default=-1, min=-1, max=1000, tooltip="So many of the last blocks keep "
                             "all that they compute: fastest, and most memory. -1 = as many as fit."),
                io.Combo.Input("segments", options=list(SEGMENTS), default="auto", tooltip="How the other blocks are "
                               "computed again: branch by branch, or each block at once, which keeps less."),
                io.Combo.Input("keep_attention", options=list(SWITCH), default="auto", tooltip="Keep the results of "
                               "attention, which take long to compute again; most with clips."),
                io.Combo.Input("inputs_in_ram", options=list(SWITCH), default="auto", tooltip="Inputs of blocks wait "
                               "in the computer's memory until they are needed again."),
                io.Float.Input("keep_free", default=0.0, min=0.0, max=1000.0, step=0.5, tooltip="GiB of the card that "
                               "are left to other programs."),
                io.Combo.Input("compile", options=list(SWITCH), default="auto", tooltip="Make one kernel of several "
                               "small ones. auto: where Triton works; the log says why not."),
                io.Combo.Input("products", options=list(PRODUCTS), default="exact", tooltip="Multiply frozen weights "
                               "in 8 bits, on cards that have such products: faster, and less exact. The log says by "
                               "how much. A run with others is another run."),
            ]),
            outputs=[sockets.Memory.Output(display_name="memory", tooltip="For Train Wan LoRA.")],
        )
