"""Tiny models of random weights with the exact architecture of each Wan family, as ComfyUI's own loader makes them.

Names are those of trainer/model/families.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..world import random_models


@dataclass(frozen=True)
class Wan:
    """What tells a family's network from others."""

    in_dim: int = 16
    image_tokens: int = 0
    """As random_models.dit_weights takes it, with None for one image."""
    kind: str = "WAN21_T2V"
    """ComfyUI's class, in comfy/supported_models.py."""
    latent_channels: int = 16
    """Of its latents, which it predicts."""
    has_ref_conv: bool = False
    is_vace: bool = False


WANS = {
    "Wan2.1 T2V": Wan(),
    "Wan2.1 I2V": Wan(in_dim=36, image_tokens=None, kind="WAN21_I2V"),
    "Wan2.1 FLF2V": Wan(in_dim=36, image_tokens=514, kind="WAN21_I2V"),
    "Wan2.2 I2V": Wan(in_dim=36),
    "Wan2.2 5B": Wan(in_dim=48, kind="WAN22_T2V", latent_channels=48),
    "Wan2.1 Fun-Control": Wan(in_dim=48, image_tokens=None, kind="WAN21_FunControl2V"),
    "Wan2.2 Fun-Control": Wan(in_dim=52, has_ref_conv=True),
    "Wan2.1 VACE": Wan(kind="WAN21_Vace", is_vace=True),
}

NAMES = tuple(WANS)

CONTROLLED = ("Wan2.1 Fun-Control", "Wan2.2 Fun-Control", "Wan2.1 VACE")
"""Those that take control clips."""


def family(name: str):
    """Its record."""
    from wantune.trainer.model import families

    return families.named(name)


def state_dict(
    name: str, dim: int = 128, ffn_dim: int = 256, layers: int = 2, seed: int = 0,
    dtype: torch.dtype = torch.float32, device: str = "cpu", text_dim: int = 4096
) -> dict[str, torch.Tensor]:
    """The weights of a family's network.

    Args:
        device: "meta" for names and shapes alone.
    """
    wan, weights = WANS[name], random_models.Weights(seed, dtype, device)
    is_control = wan.in_dim not in (16, 36, wan.latent_channels)
    random_models.dit_weights(
        dim, ffn_dim, layers, 36 if is_control else wan.in_dim, text_dim, weights, wan.image_tokens)
    if is_control:
        weights.layer("patch_embedding", dim, wan.in_dim, (1, 2, 2))
    if wan.has_ref_conv:
        weights.layer("ref_conv", dim, wan.latent_channels, (2, 2))
    if wan.is_vace:
        _add_vace(weights, dim, ffn_dim, {40: 8, 30: 15}.get(layers, layers), seed)
    return weights.tensors


def _add_vace(weights: random_models.Weights, dim: int, ffn_dim: int, layers: int, seed: int) -> None:
    """The further blocks: 15 of the 1.3B model's 30, 8 of 14B's 40."""
    further = random_models.Weights(seed + 1, weights.dtype, weights.device)
    random_models.dit_weights(dim, ffn_dim, layers, 16, 8, further)
    weights.tensors |= {f"vace_{key}": value for key, value in further.tensors.items() if key.startswith("blocks.")}
    weights.layer("vace_patch_embedding", dim, 96, (1, 2, 2))
    weights.layer("vace_blocks.0.before_proj", dim, dim)
    for number in range(layers):
        weights.layer(f"vace_blocks.{number}.after_proj", dim, dim)


def write(name: str, path: Path, **sizes) -> Path:
    """The file of such a model, for a loader in a graph."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict(name, **sizes), path)
    return path


def load(name: str, load_as: torch.dtype | None = None, **sizes):
    """A MODEL of the family, as UNETLoader gives it.

    Args:
        load_as: the dtype the weights are loaded in.
    """
    import comfy.sd

    options = {} if load_as is None else {"dtype": load_as}
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state_dict(name, **sizes), model_options=options)


def conditions(name: str, size_FHW: tuple[int, int, int], samples: int = 1, seed: int = 5) -> dict[str, torch.Tensor]:
    """Random conditions of the family's kinds, as they come from a cache; texts of different lengths.

    Args:
        size_FHW: of the latents.
    """
    frames, rows, columns = size_FHW
    generator = torch.Generator().manual_seed(seed)
    text_BLD = torch.randn(samples, 24, family(name).text_width, generator=generator)
    for number, text_LD in enumerate(text_BLD):
        text_LD[12 + number:] = 0
    found = {"text": text_BLD}
    kinds = {kind.name for kind in family(name).conditions}
    if "image" in kinds:
        mask_BCFHW = torch.ones(samples, 4, frames, rows, columns)
        mask_BCFHW[:, :, 0] = 0
        image_BCFHW = torch.randn(samples, 16, frames, rows, columns, generator=generator)
        found["image"] = torch.cat([image_BCFHW, mask_BCFHW], dim=1)
    if "clip_vision" in kinds:
        tokens = 514 if name == "Wan2.1 FLF2V" else 257
        found["clip_vision"] = torch.randn(samples, tokens, random_models.CLIP_VISION_DIM, generator=generator)
    for kind, channels, length in (("control", 16, frames), ("reference", 16, 1), ("vace", 32, frames)):
        if kind in kinds:
            found[kind] = torch.randn(samples, channels, length, rows, columns, generator=generator)
    if "known" in kinds:
        found["known"] = (torch.arange(frames) == 0).float().expand(samples, -1) * (frames > 1)
    return found


def dataset(name: str, folder: Path, sizes_FHW: Sequence[tuple[int, int, int]], tokens: int = 40):
    """A cache of one sample of random values for each size, with all conditions of the family.

    Args:
        sizes_FHW: of the latents.
        tokens: of each caption.
    """
    from wantune.trainer.data.buckets import Bucket
    from wantune.trainer.encoded import cache, store

    samples, its = [], family(name)
    for number, size_FHW in enumerate(sizes_FHW):
        generator = torch.Generator().manual_seed(number)
        given = conditions(name, size_FHW, seed=number) | {
            "latent": torch.randn(1, its.latent_channels, *size_FHW, generator=generator),
            "text": torch.randn(1, tokens, its.text_width, generator=generator),
            "prior": torch.randn(1, tokens, its.text_width, generator=generator)}
        paths = {kind: folder / f"{kind}_{number}.safetensors" for kind in given}
        for kind, path in paths.items():
            store.write_tensor(path, given[kind][0].contiguous())
        latent, text, prior = (paths.pop(kind) for kind in ("latent", "text", "prior"))
        frames, rows, columns = size_FHW
        bucket = Bucket(4 * (frames - 1) + 1, its.stride_FHW[1] * rows, its.stride_FHW[2] * columns)
        samples.append(cache.CachedSample(
            name=f"{number}.png", bucket=bucket, repeats=1, latent_paths=(latent,), captions=({"text": text},),
            windows=(paths,), empty_caption={"text": text}, content=str(number),
            prior_captions=({"text": prior},)))
    return cache.CachedDataset(family=its, samples=tuple(samples), held_out=(), digest=f"random {name}",
                               trigger_word="", captions=("a caption",) * len(samples), condition=its.frames_given[-1])


FULL = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30},
    "5B": {"dim": 3072, "ffn_dim": 14336, "layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40},
}
"""The sizes that there are, as `state_dict` takes them."""


def on_meta(name: str, size: str):
    """A MODEL of full size without memory: ComfyUI's own detection, model and patcher over meta tensors of 16 bits."""
    import comfy.model_detection
    import comfy.model_patcher

    state = state_dict(name, dtype=torch.bfloat16, device="meta", **FULL[size])
    config = comfy.model_detection.model_config_from_unet(dict(state), "")
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.inference_mode():
        model = config.get_model(state, "", device="meta")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
