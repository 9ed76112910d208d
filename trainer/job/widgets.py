"""What the nodes' widgets are called outside ComfyUI: the sections and keys of a settings file.

A section is the display name of a node, a key the name of its widget; tests/nodes/test_widgets.py holds all of it
against the nodes. Keys that are `is_beyond` stand for what is a socket in ComfyUI, such as a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from ..base.errors import UserError
from ..settings.adapter import ADAPTERS, LoraConfig
from ..settings.data import CAPTION_FALLBACKS, CONDITIONS, EXTRACTION_MODES, MASK_SOURCES, DatasetConfig
from ..settings.memory import PRODUCTS, SEGMENTS, SWITCH, MemoryConfig
from ..settings.presets import CUSTOM, PRESETS
from ..settings.training import (
    LOSSES,
    OPTIMIZERS,
    ORDERS,
    SCHEDULES,
    TIMESTEPS,
    WEIGHTINGS,
    WINDOWS,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

Value = bool | int | float | str

MADE_FOR = ("Wan2.1, Wan2.2 A14B", "Wan2.2 5B")
"""The entries of model.families.DATASETS, which would import torch."""

QUANTIZATIONS = ("none", "fp8", "int8", "nf4")
DTYPES = ("bfloat16", "float16", "float32")

_ITEMS, _LINES = ", ", "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Widget:
    """One key of a section."""

    name: str
    default: Value
    help: str
    """What it does, in a sentence, with its unit."""
    choices: tuple[str, ...] = ()
    separator: str = ""
    """Of a text that lists several: a settings file may have an array in its place. "" for all others."""
    is_beyond: bool = False
    """Whether no node has such a widget."""

    @property
    def type(self) -> type:
        """bool, int, float or str."""
        return type(self.default)

    def taken(self, value: object, where: str) -> Value:
        """A value of a settings file as the widget would have it; whole numbers stay what they are.

        Args:
            where: names the key in sentences.

        Raises:
            UserError: it is of another type, or none of the choices.
        """
        if self.separator and isinstance(value, (list, tuple)):
            return self.separator.join(str(each) for each in value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.type is int and is_number and value == int(value):
            value = int(value)
        if type(value) is not self.type and not (self.type is float and is_number):
            raise UserError(f"{where} is {value!r}; give {_KINDS[self.type]}, for example {told(self.default)}.")
        if self.choices and value not in self.choices:
            raise UserError(f"{where} is {value!r}; choose one of {'; '.join(self.choices)}.")
        return value

    def read(self, text: str, where: str) -> Value:
        """A value written as text, such as that of a flag: on or off, a number, or the text itself.

        Raises:
            UserError: as `taken`.
        """
        if self.type is bool:
            return self.taken(_SWITCHES.get(text.strip().lower(), text), where)
        try:
            return self.taken(text if self.type is str else self.type(text), where)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            return self.taken(text, where)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}

_SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one node."""

    name: str
    """In settings files: the display name in small letters, with underscores."""
    display_name: str
    """Of the node; "" where there is none."""
    about: str
    widgets: tuple[Widget, ...]

    def widget(self, name: str) -> Widget | None:
        """The key of that name."""
        return next((each for each in self.widgets if each.name == name), None)


def told(value: Value) -> str:
    """A value as it may be written in settings files, for sentences."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _of(record: type, helps: Mapping[str, str], **choices: tuple[str, ...]) -> tuple[Widget, ...]:
    """Keys that are fields of a record and have its defaults."""
    defaults = {field.name: field.default for field in fields(record)}
    return tuple(Widget(name=name, default=defaults[name], help=help, choices=choices.get(name, ()))
                 for name, help in helps.items())


def _beyond(name: str, help: str, default: Value = "", **others) -> Widget:
    return Widget(name=name, default=default, help=help, is_beyond=True, **others)


_LOAD_DATASET = Section("load_dataset", "Load Dataset", "A folder of pictures and clips with captions.", (
    Widget(name="folder", default="", help="Folder of the data; may be relative to the settings file."),
    *_of(DatasetConfig, {
        "trigger_word": "Put in front of each caption that lacks it.",
        "resolution": "Pixels: trained at about resolution x resolution, in the file's own aspect ratio."}),
    Widget(name="frame_buckets", default="1, 33", separator=_ITEMS, help="Frames (4n+1) that clips are cut to, at 16 a "
           "second (Wan2.2 5B: 24); 1 is a picture."),
    *_of(DatasetConfig, {
        "num_repeats": "Times that each file is seen in an epoch.",
        "validation_items": "Files kept out of training, to measure on.",
        "upscale": "Enlarge files that are smaller than their training size, instead of leaving them out.",
        "extraction": "What is taken of a clip that is longer than its frame bucket."}, extraction=EXTRACTION_MODES)))

_DATASET_SETTINGS = Section("dataset_settings", "Dataset Settings", "Captions, masks, given frames.", (
    Widget(name="more_resolutions", default="", separator=_ITEMS, help="Further resolutions of each file, in pixels."),
    *_of(DatasetConfig, {
        "prepend_trigger": "Put the trigger word in front of captions that lack it.",
        "caption_fallback": "What a file without a caption gets.",
        "caption_dropout": "Share of the visits, 0 to 1, in which the caption is left empty.",
        "shuffle_tags": "Take comma-separated tags in up to 8 orders in turn.",
        "masks": "Where loss masks come from: a folder masks, or the picture's transparency.",
        "alpha_color": "Laid under transparent pictures: a colour's name or #rrggbb."},
        caption_fallback=CAPTION_FALLBACKS, masks=MASK_SOURCES),
    Widget(name="model", default=MADE_FOR[0], choices=MADE_FOR, help="Which models the data is for: those of one VAE."),
    *_of(DatasetConfig, {
        "condition": "What the model is given beside the caption: frames of the clip, or a control clip.",
        "condition_dropout": "Share of the visits, 0 to 1, in which it is given neither.",
        "class_word": "What the trigger word stands for, such as a person."}, condition=CONDITIONS),
    Widget(name="preserve_prompts", default="", separator=_LINES, help="Prompts for which the model stays what it is, "
           "one a line.")))

_TRAIN = Section("train_wan_lora", "Train Wan LoRA", "A run: its length, size and rate.", (
    Widget(name="run_name", default="my_lora", help="Names the run's folder."),
    *_of(TrainConfig, {
        "epochs": "Passes over all samples x repeats.",
        "max_steps": "Stop after so many steps; 0 = after all epochs.",
        "batch_size": "Samples a step, of all processes together; 0 = as many as fit and keep the device busy.",
        "learning_rate": "How far a step goes."}),
    *_of(LoraConfig, {"rank": "Size of the LoRA.", "alpha": "The LoRA's strength is alpha / rank in training; 0 = as "
                      "rank."}),
    *_of(TrainConfig, {
        "seed": "The same seed gives the same LoRA.",
        "gradient_checkpointing": "Keep of the forward pass what fits, compute the rest again; off: keep all."}),
    Widget(name="preset", default="person, pictures", choices=(CUSTOM, *PRESETS), help="Fills in those of epochs, "
           "max_steps, batch_size, learning_rate, rank and alpha that are not set."),
    Widget(name="restart", default=False, help="Begin anew in a second attempt beside the first, which stays."),
    Widget(name="attempt", default=0, help="Number of the attempt to go on with; 0 = the newest."),
    *_of(TrainConfig, {"deterministic": "On a CUDA card too the same seed gives the same bits; slower."}),
    *_of(ObjectiveConfig, {"boundary": "Noise level, 0 to 1, between the experts of Wan2.2; 0 = the model's own."}),
    Widget(name="order", default=ORDERS[0], choices=ORDERS, help="In which order two experts are trained."),
    _beyond("continue_from", "LoRA file of any trainer to begin with; rank and alpha are then its own."),
    _beyond("continue_from_low", "The same for model_low.")))

_ADAPTER = Section("adapter_settings", "Adapter Settings", "What is trained of the model.", _of(LoraConfig, {
    "kind": "Kind of adapter.",
    "dropout": "Share, 0 to 1, that is left out by chance in training.",
    "targets": "all, attention, or a regular expression for names of layers.",
    "first_block": "Leave the blocks before this one, counted from 0.",
    "last_block": "Leave those after it; -1 = none.",
    "lokr_factor": "Of lokr: 4 is a large adapter, 16 a small one; -1 = nearest to a square."}, kind=ADAPTERS))

_OPTIMIZER = Section("optimizer_settings", "Optimizer Settings", "From gradients to steps.", _of(OptimizerConfig, {
    "name": "The optimizer.",
    "beta1": "How long the gradient's direction is remembered: below 1, of steps about 1 / (1 - beta1).",
    "beta2": "The same of the gradient's size.",
    "eps": "Keeps the division by a tiny gradient finite.",
    "weight_decay": "Pulls the LoRA towards zero.",
    "schedule": "How the learning rate goes after warm-up.",
    "warmup_steps": "Steps over which the learning rate rises.",
    "cycles": "Restarts of cosine_with_restarts.",
    "power": "Exponent of polynomial.",
    "accumulation": "Batches whose gradients make one step.",
    "max_grad_norm": "A longer gradient is shortened to this; 0 = never.",
    "ema_decay": "Decay of the LoRA's moving average, below 1, a step; 0 = none.",
    "use_average": "Use and save the average; off: what is trained itself."}, name=OPTIMIZERS, schedule=SCHEDULES))

_OBJECTIVE = Section(
    "timestep_and_loss_settings", "Timestep and Loss Settings", "Which noise levels (0 = none, 1 = nothing else) are "
    "trained on, and how their errors count.", (*_of(ObjectiveConfig, {
        "timesteps": "How noise levels are drawn.",
        "logit_mean": "Of logit_normal; above 0 means more noise.",
        "logit_std": "Of logit_normal: width.",
        "mode_scale": "Of mode; above 0 favours the middle.",
        "beta_a": "Of beta; more means more noise.",
        "beta_b": "Of beta; more means less noise.",
        "shift": "Moves all levels to more noise, as a sampler's shift does; 1 = none.",
        "resolution_shift": "Shift further for large pictures and clips.",
        "min_t": "Least noise level.",
        "max_t": "Largest noise level.",
        "stratified": "Spread the levels of a batch evenly.",
        "weighting": "How much a noise level counts.",
        "loss": "mse, or huber, which counts large errors less.",
        "huber_delta": "Errors above this count linearly.",
        "noise_offset": "Deviation of further noise that is constant over a channel; 0 = none.",
        "window": "Of Wan2.2 A14B with one model: the noise levels of this expert.",
        "stills_min_t": "Least noise level of pictures.",
        "stills_max_t": "Largest noise level of pictures.",
        "clips_min_t": "Least noise level of clips.",
        "clips_max_t": "Largest noise level of clips.",
        "preserve": "Weight that holds the model to what it was where the trigger word is not said; 0 = off.",
        "preserve_every": "Steps of which one does that."}, timesteps=TIMESTEPS, weighting=WEIGHTINGS, loss=LOSSES,
        window=WINDOWS), _beyond("sigmas", "Of as sampled: the sampler's noise levels, falling.", separator=_ITEMS)))

_VALIDATION = Section(
    "validation_and_checkpoint_settings", "Validation and Checkpoint Settings", "How often a run is measured and "
    "written.", _of(ValidationConfig, {
        "evaluate_epochs": "Epochs after which the held-out files are measured on; 0 = not by epochs.",
        "evaluate_steps": "Steps after which they are; 0 = not by steps.",
        "early_stop": "End after so many measurements without a better one; 0 = never.",
        "every_epochs": "Epochs after which a checkpoint is written; 0 = not by epochs.",
        "every_steps": "Steps after which one is written; 0 = not by steps.",
        "every_minutes": "Minutes after which one is written; 0 = not by time.",
        "keep_last": "So many checkpoints stay, and the best."}))

_MEMORY = Section("memory_settings", "Memory Settings", "Pins parts of the memory plan.", _of(MemoryConfig, {
    "whole_blocks": "So many of the last blocks keep all that they compute; -1 = as many as fit.",
    "segments": "How the other blocks are computed again.",
    "keep_attention": "Keep the results of attention.",
    "inputs_in_ram": "Inputs of blocks wait in the computer's memory.",
    "keep_free": "GiB of the card that are left to other programs.",
    "compile": "Make one kernel of several small ones.",
    "products": "How frozen weights are multiplied; a run with others is another run."},
    segments=SEGMENTS, keep_attention=SWITCH, inputs_in_ram=SWITCH, compile=SWITCH, products=PRODUCTS))

_PREVIEWS = Section("preview_settings", "Preview Settings", "Short videos while a run goes on; none without prompts.", (
    _beyond("prompts", "What is sampled, one prompt a line.", separator=_LINES),
    _beyond("negative", "The negative prompt."),
    Widget(name="width", default=448, help="Of the video, in pixels."),
    Widget(name="height", default=256, help="Of the video, in pixels."),
    Widget(name="frames", default=17, help="Of the video, 4n+1; 1 is a picture."),
    Widget(name="steps", default=15, help="Of the sampler."),
    Widget(name="cfg", default=5.0, help="Weight of the prompt against the negative one; 1 halves the time."),
    Widget(name="shift", default=5.0, help="Of the sampler's noise levels."),
    Widget(name="seed", default=0, help="The same for every video."),
    Widget(name="every_epochs", default=2, help="Epochs after which they are made; 0 = not by epochs."),
    Widget(name="every_steps", default=0, help="Steps after which they are made; 0 = not by steps."),
    Widget(name="sampler_name", default="euler", help="As in KSampler."),
    Widget(name="scheduler", default="simple", help="As in KSampler."),
    Widget(name="switch_at_step", default=0, help="Step from which model_low samples; 0 = there is none.")))

_MODELS = Section("models", "", "Files of the models: in ComfyUI these are sockets.", (
    _beyond("model", "The diffusion model: a safetensors file of ComfyUI's, or a folder of diffusers'."),
    _beyond("model_low", "The low-noise expert of Wan2.2 A14B, where model is the high-noise one."),
    _beyond("vae", "The VAE; not needed where a cache is given."),
    _beyond("clip", "The UMT5 text encoder; not needed where a cache is given."),
    _beyond("clip_vision", "The CLIP vision, which image-to-video of Wan2.1 needs."),
    _beyond("folder", "Where files of these names are looked for, in all folders below."),
    _beyond("quantization", "How the frozen weights are held.", QUANTIZATIONS[0], choices=QUANTIZATIONS),
    _beyond("dtype", "What is computed in.", DTYPES[0], choices=DTYPES)))

SECTIONS: Mapping[str, Section] = MappingProxyType({section.name: section for section in (
    _LOAD_DATASET, _DATASET_SETTINGS, _TRAIN, _ADAPTER, _OPTIMIZER, _OBJECTIVE, _VALIDATION, _MEMORY, _PREVIEWS,
    _MODELS)})
"""All sections by name, in the order in which a run uses them."""
