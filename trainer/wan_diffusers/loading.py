"""Loads diffusers' WanTransformer3DModel: from a folder that diffusers wrote, or from ComfyUI's own single file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from ..base.errors import UserError
from ..model.family import ModelFamily
from ..model.forms import NO_IMAGE, ONE, TWO, Form
from . import files, quantised
from .names import UNREAD, by_comfyui_name, checked, comfyui_name, config_of, family_of, missing

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

_CLASS = "WanTransformer3DModel"

_CLASSES = {"WanVACETransformer3DModel": "Wan VACE", "WanAnimateTransformer3DModel": "Wan2.2 Animate",
            "WanS2VTransformer3DModel": "Wan2.2 S2V"}
"""diffusers' classes of other Wans."""


def load_transformer(
    path: Path, dtype: torch.dtype, device: torch.device, quantization: str = quantised.NONE
) -> WanTransformer3DModel:
    """A transformer in evaluation mode, on the device.

    What diffusers keeps in fp32 (norms, modulations, the embedding of the noise level, positions) is in fp32.

    Args:
        path: a folder that diffusers wrote, its root or that of the transformer, or a safetensors file with ComfyUI's
            names; weights in fp8 are dequantised. With a quantisation it is first read into RAM.
        dtype: of the other weights, and in which is computed.
        quantization: of the Linears of its blocks, one of quantised.QUANTIZATIONS.

    Raises:
        UserError: it cannot be read, it is another Wan or none, or the quantisation needs what is not there.
    """
    quantised.check(quantization)
    # what is quantised goes to the device block by block
    place = device if quantization == quantised.NONE else torch.device("cpu")
    transformer = _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype, place)
    return _placed(transformer, dtype, device, quantization)


def family_of_transformer(transformer: torch.nn.Module) -> ModelFamily:
    """The family of one that is loaded.

    Raises:
        UserError: as `names.family_of`.
    """
    return family_of({comfyui_name(name): value.shape for name, value in transformer.state_dict().items()})


def _from_folder(path: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no folder of a transformer that diffusers wrote (config.json: {error}); give one, "
                        "or ComfyUI's safetensors file.") from None
    name = config.get("_class_name")
    if name != _CLASS:
        raise UserError(f"{path} holds {_CLASSES.get(name) or f'a {name}'}, not a {_CLASS}; give a text-to-video or "
                        "image-to-video model of Wan2.1 or Wan2.2, or train this one in ComfyUI.")
    image = NO_IMAGE if config.get("image_dim") is None else TWO if config.get("pos_embed_seq_len") else ONE
    checked(Form(latent=config["out_channels"], channels=config["in_channels"], image=image))
    from diffusers import WanTransformer3DModel

    try:
        return WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be read ({error}); copy it anew, or give ComfyUI's safetensors file.") from None


def _from_file(path: Path, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
    with files.opened(path) as file:
        family = family_of(file.shapes)
        transformer = _without_weights(config_of(file.shapes))
        names = by_comfyui_name(transformer.state_dict())
        _check_complete(path.name, file.shapes, {name: transformer.state_dict()[key].shape for name, key in
                                                 names.items()}, UNREAD.get(family.name, ()))
        in_fp32 = set(transformer._keep_in_fp32_modules or ())
        state = {key: file.value(name, device, torch.float32 if in_fp32 & set(key.split(".")) else dtype)
                 for name, key in names.items()}
    transformer.load_state_dict(state, assign=True)
    return transformer


def _without_weights(config: dict[str, object]) -> WanTransformer3DModel:
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights():  # unlike the device "meta" it makes what is no weight, the positions
        return WanTransformer3DModel(**config)


def _placed(
    transformer: WanTransformer3DModel, dtype: torch.dtype, device: torch.device, quantization: str
) -> WanTransformer3DModel:
    """On the device, block by block where it is quantised."""
    if quantization != quantised.NONE:
        for block in transformer.blocks:
            quantised.quantise(block, quantization, device, dtype)
    return transformer.to(device).eval()


def _check_complete(name: str, found: dict, wanted: dict, unread: Iterable[str]) -> None:
    if lost := sorted(wanted.keys() - found.keys()):
        raise missing(lost)
    further = sorted(key for key in found.keys() - wanted.keys() if not key.startswith(tuple(unread)))
    if further:
        raise UserError(f"{name} has {further[0]}, which diffusers' {_CLASS} has not; train this model in ComfyUI.")
    for key, shape in wanted.items():
        if tuple(found[key]) != tuple(shape):
            raise UserError(f"{key} of {name} has the shape {tuple(found[key])}, a Wan of this size has "
                            f"{tuple(shape)}; take another file.")
