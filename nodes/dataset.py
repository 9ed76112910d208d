"""Load Dataset, Dataset Settings and Join Datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from comfy_api.latest import io, ui

from ..trainer.base.errors import UserError
from ..trainer.data import folder, manifest, report, scan
from ..trainer.data.notes import Notes
from ..trainer.job.configs import dataset_config, dataset_settings
from ..trainer.model import families
from ..trainer.settings.data import (
    CAPTION_FALLBACKS,
    CONDITIONS,
    EXTRACTION_MODES,
    MASK_SOURCES,
    NO_FRAME,
    DatasetConfig,
)
from . import sockets
from .advanced import marked
from .backend import linked, paths
from .page import places
from .page.live import show_text
from .page.progress_line import ProgressLine

MAX_FILES_SHOWN = 100
"""Files of each kind, used or left out, in the text that the node shows; the report output lists all."""



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
                io.String.Input("folder", default="", tooltip="Folder with the pictures (jpg, png, webp, avif, bmp, "
                                "tiff), the clips (mp4, mov, mkv, webm, avi, animated gif and webp) and a .txt "
                                "or .caption beside each; folders in it are read as well. A full path, or a folder in "
                                "ComfyUI's input folder."),
                io.String.Input("trigger_word", default="", tooltip="The word that will call what you teach. It is "
                                "put in front of each caption that lacks it. Choose one that means nothing yet."),
                io.Int.Input("resolution", default=512, min=16, max=4096, step=16, tooltip="Pictures and clips are "
                             "trained at about resolution x resolution pixels in their own aspect ratio."),
                io.String.Input("frame_buckets", default="1, 33", tooltip="Frame counts (4n+1) that clips are cut "
                                "to, at 16 frames a second (Wan2.2 5B: 24); each clip takes the longest that fits. 1 "
                                "is a picture."),
                io.Int.Input("num_repeats", default=10, min=1, max=10000, tooltip="How often each picture, and "
                             "each part of a clip, is seen in one epoch. A subfolder called 5_name has its own 5, up "
                             "to 200."),
                io.Int.Input("validation_items", default=0, min=0, max=1000, tooltip="So many files are kept out of "
                             "training, chosen by their content."),
                io.Boolean.Input("upscale", default=False, optional=True, tooltip="Enlarge pictures and clips that are "
                                 "smaller than their training size instead of leaving them out."),
                io.Combo.Input("extraction", options=list(EXTRACTION_MODES), default="start", optional=True,
                               tooltip="What is taken of a clip that is longer than its frame bucket: its start, its "
                               "middle, all of it in evenly spaced parts that may overlap (uniform) or in parts one "
                               "after the other (chunks), or up to 8 random parts taken in turn (random)."),
                sockets.DatasetSettings.Input("settings", optional=True, tooltip="From Dataset Settings: the model, "
                                              "first frames, captions, masks, several resolutions."),
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
        inputs.pop("settings", None)
        if any(value is None for value in inputs.values()):
            return True
        return _checked(lambda: folder.check(Path(_config(**inputs).folder)))

    @classmethod
    def fingerprint_inputs(cls, folder=None, **_inputs) -> str | int:
        """Changes when a file of the folder does, so that ComfyUI runs the node again with the same widgets."""
        return linked.changes(_state) if folder is None else _state(folder)

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        config = _config(**inputs)
        linked.given(config.folder, _state)
        places.allow(config.folder)
        progress = scan.scanning(config, paths.scans_folder())
        return _reported(ProgressLine(cls.hidden).follow(progress))  # the contact sheet (web/sheet/) shows it


class DatasetSettings(io.ComfyNode):
    """Options of Load Dataset that few datasets need: the model, captions, masks and further resolutions in detail."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_DatasetSettings",
            display_name="Dataset Settings",
            category="WanTune",
            description="Which model it is for, and captions, masks and resolutions in detail, for one Load Dataset or "
                        "several.",
            inputs=marked("WanTune_DatasetSettings", [
                io.String.Input("more_resolutions", default="", tooltip="Train on each file at these resolutions as "
                                "well, for example 256, 768."),
                io.Boolean.Input("prepend_trigger", default=True, tooltip="Put the trigger word in front of captions "
                                 "that lack it. [trigger] in a caption is always replaced."),
                io.Combo.Input("caption_fallback", options=list(CAPTION_FALLBACKS), default="trigger word",
                               tooltip="What a file without a caption gets: the trigger word, its own name, or no "
                               "place in the dataset."),
                io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, tooltip="Share of the "
                               "visits in which the caption is left empty; 0.05 to 0.1 keeps the LoRA from clinging to "
                               "the words."),
                io.Boolean.Input("shuffle_tags", default=False, tooltip="For captions of comma-separated tags: take "
                                 "them in up to 8 orders in turn. The trigger word stays in front."),
                io.Combo.Input("masks", options=list(MASK_SOURCES), default="folder", tooltip="White is learned, black "
                               "is not: pictures of the same name in a folder called masks, or the picture's own "
                               "transparency (alpha)."),
                io.String.Input("alpha_color", default="white", tooltip="Laid under transparent pictures: a name such "
                                "as white or grey, or #rrggbb."),
                io.Combo.Input("model", options=list(families.DATASETS), default=next(iter(families.DATASETS)),
                               optional=True, tooltip="What will be trained. Wan2.2 5B has a VAE of its own, 24 frames "
                               "a second and sides that are multiples of 32; all other Wans share their data."),
                io.Combo.Input("condition", options=list(CONDITIONS), default=NO_FRAME, optional=True,
                               tooltip="What the model is given beside the caption: none for text-to-video, the first "
                               "frame for image-to-video, first and last frame for FLF2V, or a control clip of the "
                               "same name in a folder called control, for Fun-Control or VACE."),
                io.Float.Input("condition_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                               tooltip="Share of the visits in which the model is given no frame and no control clip; "
                               "0.1 keeps the LoRA from leaning on the picture alone."),
                io.String.Input("class_word", default="", optional=True, tooltip="What the trigger word stands for, in "
                                "words that the model knows, such as a person: takes its place in prompts for which "
                                "the model should stay what it is. Empty: the trigger word is left out there."),
                io.String.Input("preserve_prompts", default="", multiline=True, optional=True, tooltip="Further "
                                "prompts for which the model should stay what it is, one a line, without the trigger "
                                "word. They say what drift is measured on, and what preserve in Timestep and Loss "
                                "Settings holds the model to."),
            ]),
            outputs=[sockets.DatasetSettings.Output(display_name="settings", tooltip="For Load Dataset.")],
        )

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        known = {name: value for name, value in inputs.items() if value is not None}
        return _checked(lambda: dataset_settings(**known))

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return io.NodeOutput(dataset_settings(**inputs))


class JoinDatasets(io.ComfyNode):
    """Several folders as one dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [sockets.Dataset.Input(f"dataset_{i}", optional=True, tooltip="One more dataset.") for i in range(3, 7)]
        return io.Schema(
            node_id="WanTune_JoinDatasets",
            display_name="Join Datasets",
            category="WanTune",
            description="Makes one dataset of several folders, each with its own repeats, resolution and trigger word.",
            inputs=[
                sockets.Dataset.Input("dataset_1", tooltip="From Load Dataset."),
                sockets.Dataset.Input("dataset_2", tooltip="From another Load Dataset."),
                *more,
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="All of them as one."),
                io.String.Output(display_name="report", tooltip="Each file, used or not and why."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, **datasets) -> io.NodeOutput:
        parts = [part for _, part in sorted(datasets.items()) if part is not None]
        found = manifest.join(parts)
        show_text(cls.hidden, report.text(found, MAX_FILES_SHOWN))
        return _reported(found)


def _reported(found: manifest.Manifest) -> io.NodeOutput:
    """The node's output: the dataset and its whole report; for the page the report as JSON, and a shortened text."""
    short = report.text(found, MAX_FILES_SHOWN)
    page = {**ui.PreviewText(short).as_dict(), "wantune_report": [report.to_json(found)]}
    return io.NodeOutput(found, report.text(found), ui=page)


def _config(folder: str, **inputs) -> DatasetConfig:
    return dataset_config(str(paths.dataset_folder(folder)), **inputs)


def _checked(check: Callable[[], object]) -> bool | str:
    try:
        check()
    except UserError as error:
        return str(error)
    return True


def _state(text: str) -> str:
    """Differs when a file of the folder has changed, was added or removed."""
    try:
        return folder.fingerprint(folder.walk(paths.dataset_folder(text), Notes()))
    except UserError as error:
        return str(error)
