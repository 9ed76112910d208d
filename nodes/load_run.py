"""Load Run LoRA: a checkpoint of any run, without training again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from comfy_api.latest import io, ui

from ..trainer.base.errors import UserError
from ..trainer.runs import checkpoints as run_lora
from ..trainer.runs.folder import INDEX, place_of
from ..trainer.runs.history import is_run
from .backend import paths
from .page.live import show_text

logger = logging.getLogger("wantune")

MAX_LISTED = 8


class LoadRunLoRA(io.ComfyNode):
    """What a run had learned at one of its checkpoints."""

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
                io.String.Input("checkpoint", default=run_lora.BEST, tooltip="best = the best on the held-out files "
                                "(the newest where none were held out), newest, or a step such as 400."),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Apply LoRA and Save LoRA."),
                io.String.Output(display_name="run", tooltip="The run's folder, for Compare Checkpoints."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, run=None, checkpoint=None):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        try:
            if checkpoint is not None:
                run_lora.parse(checkpoint, "checkpoint", single=True)
            if run is not None:
                found = run_lora.checkpoints(run_folder(run))
                if checkpoint is not None:
                    found.one(checkpoint)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run=None, checkpoint=None) -> str:
        """Changes when another checkpoint is meant, or this one was written anew."""
        return seals(run, checkpoint, single=True)

    @classmethod
    def execute(cls, run, checkpoint) -> io.NodeOutput:
        folder = run_folder(run)
        found = run_lora.checkpoints(folder)
        step = found.one(checkpoint)
        lora = run_lora.load(folder, step)
        text = f"{folder.name}, {found.label(step)}"
        if run_lora.parse(checkpoint, "checkpoint") == (run_lora.BEST,) and found.best is None:
            text += ": the newest, as no files were held out to tell the best"
        logger.info("Loaded the LoRA of %s", text)
        show_text(cls.hidden, text)
        return io.NodeOutput(lora, str(folder), ui=ui.PreviewText(text))


def run_folder(text: str) -> Path:
    """The folder of a run, by its name in output/wantune or by its path.

    Raises:
        UserError: there is no such run, or the path leads elsewhere.
    """
    root = paths.runs_folder()
    given = text.strip().strip('"')
    if not given:
        raise UserError(f"run is empty; give {_known(root)}.")
    # looked up among what there is, so that no name can lead elsewhere
    name = os.path.basename(os.path.normpath(given)) if _is_in(given, root) else given
    names = os.listdir(root) if root.is_dir() else []
    folder = root / name
    if name not in names and (os.path.dirname(given) or "\0" in given):
        raise UserError(f"run {given!r} does not lie in {root}; give {_known(root)}.")
    if name not in names or folder.is_symlink() or not is_run(folder):
        raise UserError(f"There is no run {given!r} in {root}; give {_known(root)}.")
    return folder


def seals(run: str | None, text: str | None, single: bool = False) -> str:
    """Names the checkpoints that are meant and tells one from another that was written later."""
    if run is None or text is None:
        return "linked"  # what feeds them is part of ComfyUI's key already
    try:
        found = run_lora.checkpoints(run_folder(run))
        steps = (found.one(text),) if single else found.some(text)
        stamps = [(found.run / place_of(step) / INDEX).stat().st_mtime_ns for step in steps]
    except (UserError, OSError) as error:
        return str(error)
    return f"{found.run.name} {steps} {stamps} {'' if single else found.best}"


def _is_in(given: str, root: Path) -> bool:
    if "\0" in given or not os.path.isabs(given):
        return False
    return Path(given).parent.resolve() == root.resolve()


def _known(root: Path) -> str:
    """What can be given instead."""
    runs = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not runs:
        return "the name of a run once one was trained"
    runs.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    more = f" or one of {len(runs) - MAX_LISTED} others" if len(runs) > MAX_LISTED else ""
    return ", ".join(path.name for path in runs[:MAX_LISTED]) + more
