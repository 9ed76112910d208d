"""Load Run LoRA: a checkpoint of any run, without training again."""

from __future__ import annotations

import logging

from comfy_api.latest import io, ui

from ..trainer.base.errors import UserError
from ..trainer.runs import checkpoints as run_checkpoints
from .backend import runs
from .page.live import show_text

logger = logging.getLogger("wantune")


class LoadRunLoRA(io.ComfyNode):
    """The LoRA of one checkpoint of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_LoadRunLoRA",
            display_name="Load Run LoRA",
            category="WanTune",
            description="Takes a checkpoint of a run as a LoRA, to apply or save it without training again.",
            inputs=[
                io.String.Input("run", default="", tooltip="The name of the run's folder in output/wantune, such as "
                                "my_lora-1a2b3c4d, or the run output of Train Wan LoRA."),
                io.String.Input("checkpoint", default=run_checkpoints.BEST, tooltip="best = the best on the "
                                "held-out files (the newest where none were held out), newest, or a step such as 400."),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Apply LoRA and Save LoRA."),
                io.String.Output(display_name="run", tooltip="The run's folder, for Compare Checkpoints."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, run=None, checkpoint=None):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        try:
            runs.check(run, checkpoint, single=True)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=None, checkpoint=None) -> str:
        """Changes when the widgets name another checkpoint, or this one was rewritten."""
        return runs.fingerprint_of_checkpoints(run, checkpoint, single=True)

    @classmethod
    def execute(cls, run, checkpoint) -> io.NodeOutput:
        folder = runs.run_folder(run)
        found = run_checkpoints.checkpoints(folder)
        step = found.one(checkpoint)
        lora = run_checkpoints.load(folder, step)
        text = f"{folder.name}, {found.label(step)}"
        if run_checkpoints.parse(checkpoint, "checkpoint") == (run_checkpoints.BEST,) and found.best is None:
            text += ": the newest, as no files were held out to tell the best"
        logger.info("Loaded the LoRA of %s", text)
        show_text(cls.hidden, text)
        return io.NodeOutput(lora, str(folder), ui=ui.PreviewText(text))
