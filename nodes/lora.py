"""Save LoRA and Apply LoRA."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import folder_paths
from comfy_api.latest import io, ui

from ..trainer.base.errors import UserError
from ..trainer.lora import file as lora_file
from ..trainer.lora import keys as lora_keys
from ..trainer.lora import made_for
from .backend import applying, named, paths, saved_names
from .backend.applied import put_on
from .backend.denoiser import linear_sizes
from .page.live import show_text

logger = logging.getLogger("wantune")

FROM_INPUT = "(the lora input)"


class SaveLoRA(io.ComfyNode):
    """Write a LoRA where ComfyUI's LoRA lists find it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_SaveLoRA",
            display_name="Save LoRA",
            category="WanTune",
            description="Writes the LoRA into ComfyUI's loras folder under a new name each time, with its metadata.",
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train Wan LoRA, or any LORA_MODEL."),
                io.String.Input("filename", default="wantune/my_lora", tooltip="Name in the loras folder; a number "
                                "is added, so that no file is ever overwritten. May hold %date:yyyy-MM-dd%."),
                io.Model.Input("model", optional=True, tooltip="If given, the LoRA must fit this model."),
                io.LoraModel.Input("lora_low", optional=True, tooltip="Of the low-noise expert of Wan2.2: two files "
                                   "are written, with _high and _low in their names."),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="As ComfyUI's LoRA lists show it."),
                io.String.Output(display_name="lora_name_low", tooltip="That of lora_low; nothing without it."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename=None):
        """True, or the sentence the page shows before anything runs; a linked name is not known yet (None)."""
        try:
            saved_names.check_unexpanded(filename if filename is not None else "linked")
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, filename=None, **_inputs) -> str:
        """Changes with the date that the name asks for, so that ComfyUI saves again, as its own Save nodes do."""
        return saved_names.expand(filename or "", None)

    @classmethod
    def execute(cls, lora, filename, model=None, lora_low=None) -> io.NodeOutput:
        filename = saved_names.expand(filename, cls.hidden and cls.hidden.prompt)
        given = {"": lora} if lora_low is None else {"_high": lora, "_low": lora_low}
        if lora_low is not None:
            made_for.check_not_swapped(*(getattr(each, "metadata", {}) for each in given.values()))
        states = [lora_keys.normalize(each) for each in given.values()]
        counts = [lora_keys.check_complete(state) for state in states]
        files = paths.new_lora_files(filename, *given)
        fits = [_checked(model, state) if model is not None else None for state in states]
        lines = []
        for each, state, whole, (path, name), fit in zip(given.values(), states, counts, files, fits, strict=True):
            lora_file.save(path, state, getattr(each, "metadata", {}))
            written = lora_keys.check_complete(lora_file.load(path))
            lines.append(f"{name}\n{fit or f'{written} of {whole} modules matched'}")
            logger.info("Saved %s", lines[-1].replace("\n", ": "))
        text = "\n".join(lines)
        show_text(cls.hidden, text)
        names = [name for _, name in files]
        return io.NodeOutput(*names, *[None] * (2 - len(names)), ui=ui.PreviewText(text))


def _checked(model, state: Mapping) -> lora_keys.Fit:
    """How a LoRA fits a model that is connected to Save LoRA; a part that the model has in another shape is refused."""
    fit = applying.read(model, state).fit
    if fit.misshapen:
        raise lora_keys.does_not_fit(state, linear_sizes(model), fit)
    return fit


class ApplyLoRA(io.ComfyNode):
    """Put a LoRA on a model, or say why it does not fit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_ApplyLoRA",
            display_name="Apply LoRA",
            category="WanTune",
            description="Applies a LoRA of any trainer to a Wan model and says how many modules matched.",
            inputs=[
                io.Model.Input("model", tooltip="The Wan model to apply the LoRA to; it is not changed itself."),
                io.MultiType.Input("lora", types=[io.LoraModel, io.String], optional=True, tooltip="From Train Wan "
                                   "LoRA, or the lora_name of Save LoRA."),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.01, tooltip="1 = as trained, "
                               "0 = the base model."),
                io.Combo.Input("file", options=[FROM_INPUT, *folder_paths.get_filename_list("loras")],
                               default=FROM_INPUT, optional=True, tooltip="A LoRA file, when no lora is connected."),
                io.Model.Input("model_low", optional=True, tooltip="The low-noise expert of Wan2.2, where model is the "
                               "high-noise one."),
                io.MultiType.Input("lora_low", types=[io.LoraModel, io.String], optional=True, tooltip="The LoRA for "
                                   "model_low; both get the same strength."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.Model.Output(display_name="model_low", tooltip="model_low with lora_low; nothing without them."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model, strength, lora=None, file=FROM_INPUT, model_low=None, lora_low=None) -> io.NodeOutput:
        if (model_low is None) != (lora_low is None):
            has, lacks = ("lora_low", "model_low") if model_low is None else ("model_low", "lora_low")
            raise UserError(f"Apply LoRA has {has}, but no {lacks}; connect both, or neither.")
        found = resolve(lora, file)
        if model_low is None:
            applied, text = cls._apply("model", model, found, strength)
            return cls._shown(text, applied, None)
        found_low = resolve(lora_low)
        made_for.check_not_swapped(getattr(found, "metadata", {}), getattr(found_low, "metadata", {}))
        applied, text = cls._apply("model", model, found, strength, "high")
        applied_low, text_low = cls._apply("model_low", model_low, found_low, strength, "low")
        return cls._shown(f"high: {text}\nlow: {text_low}", applied, applied_low)

    @classmethod
    def _apply(cls, socket: str, model, lora: Mapping, strength: float, expert: str = "") -> tuple[object, str]:
        """The MODEL of a socket with its LoRA, and what is to be said of it; `expert` is which of a pair it is."""
        applied, reading = put_on(model, lora, strength)
        file, made = named.file_of(model, cls.hidden, socket), made_for.expert_of(getattr(lora, "metadata", {}))
        notes = (*reading.notes, *made_for.differences(_told(lora), file, made, expert), getattr(lora, "note", ""))
        return applied, "\n".join(filter(None, (f"{reading.fit}, strength {strength:g}", *notes)))

    @classmethod
    def _shown(cls, text: str, *models) -> io.NodeOutput:
        logger.info("Applied LoRA: %s", text.replace("\n", " "))
        show_text(cls.hidden, text)
        return io.NodeOutput(*models, ui=ui.PreviewText(text))


def _told(lora: Mapping) -> str:
    """What the LoRA's file and header call the model it was made for."""
    header = getattr(lora, "metadata", {})
    names = ("ss_sd_model_name", "ss_output_name", "modelspec.title")
    texts = (getattr(lora, "file", ""), *(header.get(name) or "" for name in names))
    return " ".join(re.sub(r"\(.*?\)", "", text) for text in texts)  # in brackets we say what a model may be, too


def resolve(lora, file: str = FROM_INPUT) -> Mapping:
    """The LoRA's state dict: what is connected (a LORA_MODEL or a name of ComfyUI's LoRA lists), else the file's.

    Raises:
        UserError: neither is given, or there is no such file.
    """
    if lora is None and file == FROM_INPUT:
        raise UserError("Apply LoRA has no LoRA; connect one, or choose a file.")
    if lora is None or isinstance(lora, str):
        return lora_file.read(paths.lora_file(lora or file))
    return lora
