"""The nodes of the test-only pack."""

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .clip_vision import clip_vision
from .text_encoder import load_small_text_encoder


class LoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTuneTest_LoadTextEncoder",
            display_name="Load Small UMT5 (test only)",
            category="WanTune/test",
            inputs=[io.String.Input("name", default="umt5.safetensors")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path("text_encoders", name)
        if path is None:
            known = folder_paths.get_filename_list("text_encoders")
            raise ValueError(
                f"No text encoder is called {name!r}; put the file into a text_encoders folder of ComfyUI "
                f"or choose one of {known}."
            )
        return io.NodeOutput(load_small_text_encoder(path))


class LoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTuneTest_LoadClipVision",
            display_name="Load Small CLIP Vision (test only)",
            category="WanTune/test",
            inputs=[],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(clip_vision(Path(folder_paths.get_temp_directory()), hidden_size=64))


class WorldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadTextEncoder, LoadClipVision]
