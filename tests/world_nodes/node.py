"""The nodes of the test-only pack."""

import hashlib

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

from .frame_models import load_small_clip_vision, small_wan22_vae
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
        return io.NodeOutput(load_small_text_encoder(_found("text_encoders", name)))


class LoadWan22VAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTuneTest_LoadWan22VAE",
            display_name="Load Small Wan2.2 VAE (test only)",
            category="WanTune/test",
            inputs=[io.String.Input("name")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(small_wan22_vae(comfy.utils.load_torch_file(_found("vae", name), safe_load=True)))


class LoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTuneTest_LoadClipVision",
            display_name="Load Small CLIP Vision (test only)",
            category="WanTune/test",
            inputs=[io.String.Input("name")],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(load_small_clip_vision(_found("clip_vision", name)))


class Weights(io.ComfyNode):
    """Passes a MODEL on, and tells what must be the same after training; never from ComfyUI's memory."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTuneTest_Weights",
            display_name="Weights (test only)",
            category="WanTune/test",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output(), io.String.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> float:
        return float("nan")

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        comfy.model_management.load_models_gpu([model])  # takes out what another MODEL of the same weights merged
        digest = hashlib.sha256()
        for name, value in model.model.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        hooked = [name for name, module in model.model.named_modules()
                  if "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks]
        trained = [name for name, value in model.model.named_parameters() if value.requires_grad]
        flags = hashlib.sha256(" ".join(trained).encode()).hexdigest()
        # the address: a model that was loaded anew has the same weights too
        return io.NodeOutput(model, f"{digest.hexdigest()} at {id(model.model)}; forwards {hooked}; flags {flags}")


class WorldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadTextEncoder, LoadWan22VAE, LoadClipVision, Weights]


def _found(kind: str, name: str) -> str:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        known = folder_paths.get_filename_list(kind)
        raise ValueError(
            f"No file of {kind} is called {name!r}; put it into such a folder of ComfyUI or choose one of {known}.")
    return path
