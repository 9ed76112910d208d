"""Cache Latents and Prune Cache."""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy_api.latest import io, ui

from ..trainer.base.switches import own_switches
from ..trainer.data.manifest import Manifest
from ..trainer.encoded.cache import CachedDataset
from ..trainer.encoded.fill import fill
from ..trainer.encoded.store import Store
from ..trainer.model.backend import ConditionEncoder
from ..trainer.model.conditions import CLIP_VISION, KNOWN, TEXT, FirstFrameKnown
from ..trainer.model.wan21 import CONTROL_CLIP, IMAGE, REFERENCE, VACE_CLIP
from . import sockets
from .advanced import marked
from .backend import paths
from .backend.encoders import CaptionEncoder, WanCodec
from .backend.frame_encoders import ClipVisionEncoder, ControlEncoder, ImageEncoder, ReferenceEncoder, VaceEncoder
from .page.live import show_text
from .page.progress_line import ProgressLine

logger = logging.getLogger("wantune")


class CacheLatents(io.ComfyNode):
    """Encode a dataset once per content and keep it on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_CacheLatents",
            display_name="Cache Latents",
            category="WanTune",
            description="Encodes pictures, clips and captions once and keeps them on disk; unchanged ones are not "
                        "encoded again.",
            inputs=marked("WanTune_CacheLatents", [
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset or Join Datasets."),
                io.Vae.Input("vae", tooltip="The VAE you sample with: wan_2.1_vae.safetensors, or "
                             "wan2.2_vae.safetensors for Wan2.2 5B."),
                io.Clip.Input("clip", tooltip="The UMT5 text encoder you sample with (umt5_xxl, type wan)."),
                io.Boolean.Input("prompt_syntax", default=False, optional=True, tooltip="Off: captions are plain text, "
                                 "as written. On: they are read as prompts, so that (word:1.2) weighs a word and "
                                 "embedding:name loads a file."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For image-to-video and Fun-Control of "
                                    "Wan2.1, which need it: the CLIP vision you sample with "
                                    "(clip_vision_h.safetensors)."),
            ]),
            outputs=[sockets.Cache.Output(display_name="cache", tooltip="The encoded dataset.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> str:
        """Changes when files of the cache were deleted, so that ComfyUI runs the node again."""
        return Store(paths.cache_folder()).id

    @classmethod
    def execute(cls, dataset, vae, clip, prompt_syntax=False, clip_vision=None) -> io.NodeOutput:
        store, codec = Store(paths.cache_folder()), WanCodec(vae, dataset.family)
        encoders = {TEXT.name: CaptionEncoder(clip, prompt_syntax), **_of_frames(dataset, vae, codec, clip_vision)}
        progress = fill(dataset, store, codec, encoders)
        with own_switches():
            cached = ProgressLine(cls.hidden, "encoding").follow(progress)
        if clip_vision is not None and CLIP_VISION.name not in encoders:
            cached = replace(cached, notes=(*cached.notes, "clip_vision is not used: the dataset gives no frames to a "
                                                           "model that takes them that way."))
        for line in (*(rejection.reason for rejection in cached.left_out), *cached.notes):
            logger.warning("%s", line)
        text = _summary(cached, store)
        show_text(cls.hidden, text)
        return io.NodeOutput(cached, ui=ui.PreviewText(text))


class PruneCache(io.ComfyNode):
    """Make the cache smaller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_PruneCache",
            display_name="Prune Cache",
            category="WanTune",
            description="Deletes encoded pictures and captions that were not used for long. They are made again when "
                        "they are needed. Use it in a workflow of its own.",
            inputs=[
                io.Float.Input("max_age_days", default=30.0, min=0.0, max=36500.0, tooltip="Delete what was not used "
                               "for so many days; 0 deletes all."),
                io.Float.Input("max_size_gb", default=50.0, min=0.0, max=100000.0, tooltip="Then delete what was used "
                               "longest ago until the rest is no larger than this (1 GB = 1024 MiB)."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What was deleted and what is left.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
            not_idempotent=True,  # what the cache holds differs each time
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> float:
        """Never equal to itself: what is to be deleted depends on the day."""
        return float("nan")

    @classmethod
    def execute(cls, max_age_days, max_size_gb) -> io.NodeOutput:
        deleted, left = Store(paths.cache_folder()).prune(max_age_days, int(max_size_gb * 2**30))
        text = f"deleted {deleted}; the cache holds {left} in {paths.cache_folder()}"
        show_text(cls.hidden, text)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _of_frames(dataset: Manifest, vae, codec: WanCodec, clip_vision) -> dict[str, ConditionEncoder]:
    """The encoders of the frames and control clips that the dataset gives to the model, by kind of condition."""
    kinds = dataset.family.kinds(dataset.condition)
    found: dict[str, ConditionEncoder] = {}
    if IMAGE in kinds:
        found[IMAGE.name] = ImageEncoder(vae, codec, dataset.condition)
    for kind, encoder in ((CONTROL_CLIP, ControlEncoder), (REFERENCE, ReferenceEncoder), (VACE_CLIP, VaceEncoder)):
        if kind in kinds:
            found[kind.name] = encoder(vae, codec)
    if CLIP_VISION in kinds and clip_vision is not None:
        found[CLIP_VISION.name] = ClipVisionEncoder(clip_vision, dataset.condition)
    if KNOWN in kinds:
        found[KNOWN.name] = FirstFrameKnown()
    return found


def _summary(cached: CachedDataset, store: Store) -> str:
    lines = [f"{len(cached.samples)} samples are encoded, {len(cached.held_out)} held out",
             f"the cache holds {store.size()} in {store.folder}"]
    lines += [f"left out  {rejection.reason}" for rejection in cached.left_out]
    return "\n".join([*lines, *(f"note      {note}" for note in cached.notes)])
