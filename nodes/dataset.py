"""Load Dataset."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..trainer import dataset
from ..trainer.config import EXTRACTION_MODES, DatasetConfig, UserError, content_hash, parse_frame_buckets
from . import paths, sockets
from .live import show_text


class LoadDataset(io.ComfyNode):
    """A folder of captioned pictures and clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_LoadDataset",
            display_name="Load Dataset",
            category="WanTune",
            description="Reads a folder of pictures and clips with captions and reports what will be trained on.",
            inputs=[
                io.String.Input("folder", default="", tooltip="Folder with the pictures (jpg, png, webp, bmp), the "
                                "clips (mp4, mov, mkv, webm, avi, animated gif and webp) and a .txt caption beside "
                                "each: a full path, or a folder in ComfyUI's input folder."),
                io.String.Input("trigger_word", default="", tooltip="The word that will call what you teach. It is "
                                "put in front of each caption that lacks it. Choose one that means nothing yet."),
                io.Int.Input("resolution", default=512, min=16, max=4096, step=16, tooltip="Pictures and clips are "
                             "trained at about resolution x resolution pixels in their own aspect ratio."),
                io.String.Input("frame_buckets", default="1, 33", tooltip="Frame counts (4n+1) that clips are cut "
                                "to, at 16 frames a second; each clip takes the longest that fits. 1 is a picture."),
                io.Int.Input("num_repeats", default=10, min=1, max=10000, tooltip="How often each picture, and "
                             "each part of a clip, is seen in one epoch."),
                io.Int.Input("validation_items", default=0, min=0, max=1000, tooltip="Files kept out of training to "
                             "measure on. Not there yet in this version: leave 0."),
                io.Boolean.Input("upscale", default=False, optional=True, tooltip="Enlarge pictures and clips that are "
                                 "smaller than their training size instead of leaving them out."),
                io.Combo.Input("extraction", options=list(EXTRACTION_MODES), default="start", optional=True,
                               tooltip="What is taken of a clip that is longer than its frame bucket: its start, its "
                               "middle, all of it in evenly spaced parts that may overlap (uniform) or in parts one "
                               "after the other (chunks), or up to 8 random parts taken in turn (random)."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="What will be trained on."),
                io.String.Output(display_name="report", tooltip="Each file, used or not and why."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that the report can be had, or the cache filled, without the rest of a graph
        )

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        if any(value is None for value in inputs.values()):
            return True
        try:
            dataset.list_folder(Path(_config(**inputs).folder))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **_inputs) -> str:
        """Changes when a file of the folder does, so that the same widgets read it again."""
        if folder is None:  # linked, and not known here
            return ""
        try:
            entries = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
                       for path in dataset.list_folder(paths.dataset_folder(folder))]
        except (UserError, OSError) as error:
            return str(error)
        return content_hash(entries)

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        manifest = dataset.scan(_config(**inputs))
        report = manifest.report()
        show_text(cls.hidden, report)
        return io.NodeOutput(manifest, report, ui=ui.PreviewText(report))


def _config(folder: str, frame_buckets: str, **settings) -> DatasetConfig:
    return DatasetConfig(
        folder=str(paths.dataset_folder(folder)), frame_buckets=parse_frame_buckets(frame_buckets), **settings
    )
