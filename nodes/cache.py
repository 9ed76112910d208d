"""Cache Latents."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..trainer import cache
from . import paths, sockets
from .encoders import CaptionEncoder, WanCodec


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
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE you sample with (wan_2.1_vae.safetensors)."),
                io.Clip.Input("clip", tooltip="The UMT5 text encoder you sample with (umt5_xxl, type wan)."),
            ],
            outputs=[sockets.Cache.Output(display_name="cache", tooltip="The encoded dataset.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset, vae, clip) -> io.NodeOutput:
        progress = cache.fill(dataset, paths.cache_folder(), WanCodec(vae), CaptionEncoder(clip))
        bar = None
        while True:
            try:
                event = next(progress)
            except StopIteration as finished:
                return io.NodeOutput(finished.value)
            bar = bar or comfy.utils.ProgressBar(event.total, node_id=cls.hidden.unique_id)
            bar.update_absolute(event.done, event.total)
            comfy.model_management.throw_exception_if_processing_interrupted()
