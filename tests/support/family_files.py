"""Small model files named and stored as those of the example workflows, and what makes the examples fit them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import frame_models, tools, wan_models

FAMILIES = {
    "wan2.1_i2v_480p_14B_fp16.safetensors": "Wan2.1 I2V",
    "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors": "Wan2.2 I2V",
    "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors": "Wan2.2 I2V",
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": "Wan2.1 T2V",
    "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": "Wan2.1 T2V",
    "wan2.2_ti2v_5B_fp16.safetensors": "Wan2.2 5B",
}
"""Which family each diffusion model is of."""

LIGHTX2V = tuple(f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{expert}_noise.safetensors" for expert in ("high", "low"))

SMALL_LOADERS = {
    "CLIPLoader": ("WanTuneTest_LoadTextEncoder", "clip_name"),
    "CLIPVisionLoader": ("WanTuneTest_LoadClipVision", "clip_name"),
}
"""Of loaders that take full sizes alone: that of tests/world_nodes in their place, and the widget with the name."""

SIDE, FRAMES = 64, 5


def write(folder: Path) -> Path:
    """Write them all; returns a file that tells ComfyUI of their folders (--extra-model-paths-config)."""
    kinds = ("diffusion_models", "text_encoders", "vae", "clip_vision", "loras")
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
    for seed, (name, family) in enumerate(FAMILIES.items()):
        tensors = wan_models.state_dict(family, seed=seed, dtype=torch.float16)
        save_file(tools.scaled_to_fp8(tensors) if "fp8_scaled" in name else tensors, folder / "diffusion_models" / name)
    for seed, name in enumerate(LIGHTX2V):
        save_file(_lora("Wan2.1 T2V", seed), folder / "loras" / name)
    shutil.copy(tools.WORLD / "umt5.safetensors", folder / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    shutil.copy(tools.WORLD / "vae.safetensors", folder / "vae" / "wan_2.1_vae.safetensors")
    frame_models.write_wan22_vae(folder / "vae" / "wan2.2_vae.safetensors")
    frame_models.write_clip_vision(folder / "clip_vision" / "clip_vision_h.safetensors")
    paths = folder / "paths.yaml"
    paths.write_text(json.dumps({"examples": {kind: str(folder / kind) for kind in kinds}}), encoding="utf-8")
    return paths


def _lora(family: str, seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA on all Linears of the blocks, with the names that ComfyUI's own files of lightx2v have."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for key, weight in wan_models.state_dict(family, device="meta").items():
        name, _, parameter = key.rpartition(".")
        if key.startswith("blocks.") and parameter == "weight" and weight.ndim == 2:
            rows, columns = weight.shape
            for part, shape in (("lora_down", (rank, columns)), ("lora_up", (rows, rank))):
                drawn = torch.randn(shape, generator=generator) * shape[1] ** -0.5
                found[f"diffusion_model.{name}.{part}.weight"] = drawn.half()
            found[f"diffusion_model.{name}.alpha"] = torch.tensor(float(rank))
    return found


def adapt(graph: dict, folder: str, steps: int, rate: float) -> None:
    """Change what an example in API form needs to be run on these files in seconds; nothing else of it.

    Args:
        folder: of the dataset.
        steps: of the run.
        rate: the learning rate, so high that these steps change the video.
    """
    size = {"width": SIDE, "height": SIDE, "length": FRAMES, "frames": FRAMES}
    for entry in graph.values():
        kind, inputs = entry["class_type"], entry["inputs"]
        if kind in SMALL_LOADERS:
            entry["class_type"], name = SMALL_LOADERS[kind]
            entry["inputs"] = {"name": inputs[name]}
        elif kind == "VAELoader" and inputs["vae_name"] == "wan2.2_vae.safetensors":
            entry.update(class_type="WanTuneTest_LoadWan22VAE", inputs={"name": inputs["vae_name"]})
        elif kind == "WanTune_LoadDataset":
            *pictures, _ = inputs["frame_buckets"].split(", ")
            inputs.update(folder=folder, resolution=SIDE, frame_buckets=", ".join([*pictures, str(FRAMES)]))
        elif kind == "WanTune_TrainWanLoRA":
            inputs.update(max_steps=steps, learning_rate=rate)
        inputs.update({name: value for name, value in size.items() if name in inputs})
