"""diffusers' AutoencoderKLWan as the LatentCodec of trainer/model/backend.py, and back from latents to pixels.

Shape legend: B batch, C latent channels, F frames (of pixels or of the latent), H height, W width, 3 = RGB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..base.errors import UserError, content_hash
from ..base.out_of_memory import first_line, is_out_of_memory
from ..model.family import ModelFamily
from ..model.wan21 import WAN21_T2V
from ..model.wan22 import WAN22_5B
from .weights import fill, fingerprint, read

_WANTED = {WAN21_T2V.latent_channels: "Wan2.1's VAE (wan_2.1_vae.safetensors, with 16 latent channels)",
           WAN22_5B.latent_channels: "Wan2.2's VAE (wan2.2_vae.safetensors, with 48 latent channels)"}

_STAGE = re.compile(r"(encoder|decoder)\.(?:down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
"""A layer of a stage of Wan2.2's VAE, as its authors name it."""

_WITHIN = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
           "shortcut": "conv_shortcut"}
"""diffusers' names of what is in a residual block, by the authors'."""


class DiffusersCodec:
    """An AutoencoderKLWan, with the normalisation that the family was trained on.

    Raises:
        UserError: another VAE than the family's.
    """

    def __init__(self, vae, family: ModelFamily) -> None:
        if vae.config.z_dim != family.latent_channels:
            raise UserError(f"The VAE has {vae.config.z_dim} latent channels; load {_WANTED[family.latent_channels]}, "
                            "or choose another model for the dataset.")
        self._vae, self._family = vae, family
        self.id = content_hash("diffusers VAE", fingerprint(vae.state_dict()))

    @torch.no_grad()
    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        """uint8 pixels to a normalised latent_CFHW, fp32 on the CPU.

        Raises:
            UserError: the device has too little memory for it.
        """
        image_FHW3 = torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0)
        return self._family.normalize(self.encode_raw(image_FHW3)[None])[0]

    @torch.no_grad()
    def encode_raw(self, image_FHW3: torch.Tensor) -> torch.Tensor:
        """The same of pixels from 0 to 1, before normalisation."""
        image_1CFHW = image_FHW3.movedim(-1, 0)[None].to(self._vae.device) * 2 - 1
        with _in_a_sentence("encoded", image_FHW3.shape[:3]):
            return self._vae.encode(image_1CFHW.to(self._vae.dtype)).latent_dist.mode()[0].float().cpu()

    @torch.no_grad()
    def decode(self, latent_CFHW: torch.Tensor, name: str) -> np.ndarray:
        """A normalised latent to uint8 pixels_FHW3.

        Args:
            name: of the clip, for the sentence of an error.

        Raises:
            UserError: the pixels hold NaN or infinity, or the device has too little memory.
        """
        latent_1CFHW = self._family.denormalize(latent_CFHW[None].float()).to(self._vae.device, self._vae.dtype)
        frames, rows, columns = self._family.stride_FHW
        size_FHW = ((latent_1CFHW.shape[2] - 1) * frames + 1, latent_1CFHW.shape[3] * rows,
                    latent_1CFHW.shape[4] * columns)
        with _in_a_sentence("decoded", size_FHW):
            image_CFHW = self._vae.decode(latent_1CFHW).sample[0].float().cpu()
        if not torch.isfinite(image_CFHW).all():
            raise UserError(f"The clip of {name} holds values that are not numbers (NaN or infinity); the sampler or "
                            "the VAE overflowed, so try the VAE in fp32, or a lower strength.")
        levels_FHW3 = ((image_CFHW.movedim(0, -1) + 1) / 2).clamp(0, 1) * 255
        return levels_FHW3.round().byte().numpy()


@contextmanager
def _in_a_sentence(done: str, size_FHW: Sequence[int]) -> Iterator[None]:
    """Too little memory becomes a UserError that names the size of the clip."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        frames, height, width = size_FHW
        raise UserError(
            f"There is too little memory for {frames} frames of {width} x {height} to be {done} ({first_line(error)}); "
            "choose a lower resolution or fewer frames, or put the VAE on the CPU.") from None


def load_codec(
    path: Path, family: ModelFamily, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> DiffusersCodec:
    """The VAE of a diffusers folder (its root or its `vae`), or of a single file as ComfyUI has it.

    Args:
        dtype: of the computation; None for ComfyUI's choice, bf16 on a GPU and fp32 on a CPU.

    Raises:
        UserError: there is no such file, or it holds another model.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return DiffusersCodec(_vae(read(path, "vae"), dtype, _WANTED[family.latent_channels]).to(device), family)


def _vae(weights: Mapping[str, torch.Tensor], dtype: torch.dtype, wanted: str):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan

    if "encoder.conv1.weight" in weights:
        weights = _renamed(weights)
    if "encoder.conv_in.weight" not in weights or "decoder.conv_out.weight" not in weights:
        raise UserError(f"The file holds no VAE of Wan; load {wanted}.")
    with init_empty_weights(include_buffers=False):
        vae = AutoencoderKLWan(**_config(weights))
    fill(vae, {name: value.to(dtype) for name, value in weights.items()}, wanted)
    return vae


def _config(weights: Mapping[str, torch.Tensor]) -> dict:
    """Of an AutoencoderKLWan, from the shapes of its weights."""
    conv_in, conv_out = weights["encoder.conv_in.weight"], weights["decoder.conv_out.weight"]
    config = {"base_dim": len(conv_in), "decoder_base_dim": conv_out.shape[1],
              "z_dim": len(weights["post_quant_conv.weight"])}
    if not any(".downsampler." in name for name in weights):
        return config
    return config | {"is_residual": True, "in_channels": conv_in.shape[1], "out_channels": len(conv_out),
                     "patch_size": 2, "scale_factor_spatial": WAN22_5B.stride_FHW[1]}


def _renamed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' names, which ComfyUI uses, to diffusers'.

    diffusers converts files of Wan2.1's VAE itself; of Wan2.2's it does not know the stages.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    stages = {name: match for name in weights if (match := _STAGE.fullmatch(name))}
    rest = {name: value for name, value in weights.items() if name not in stages}
    return convert_wan_vae_to_diffusers(rest) | {_of_stage(*match.groups()): weights[name]
                                                 for name, match in stages.items()}


def _of_stage(half: str, stage: str, number: str, rest: str) -> str:
    way, layers = ("down", 2) if half == "encoder" else ("up", 3)
    for theirs, ours in _WITHIN.items():
        if rest.startswith(f"{theirs}."):
            rest = ours + rest.removeprefix(theirs)
    layer = f"resnets.{number}" if int(number) < layers else f"{way}sampler"
    return f"{half}.{way}_blocks.{stage}.{layer}.{rest}"
