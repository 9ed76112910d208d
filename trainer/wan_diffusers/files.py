"""ComfyUI's single files of a transformer: their names and shapes, and their weights as plain values.

What they may hold: Wan's own names or diffusers', with a prefix; fp8 divided by a scale for each weight, under the
names of older and newer versions of ComfyUI; and text encoder and VAE beside the transformer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..base.errors import UserError
from .names import comfyui_name

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_SCALES = ("scale_weight", "weight_scale")
"""What follows the name of a Linear: by this its weight was divided."""

_BESIDE = (*_SCALES, "scale_input", "input_scale", "comfy_quant")
"""Entries that are no parameters. The scales of inputs are for products in fp8."""

_MARKER = "scaled_fp8"
_KNOWN_FORMATS = ("float8_e4m3fn", "float8_e5m2")


class TransformerFile:
    """An open file.

    Raises:
        UserError: weights in a form that is not read here.
    """

    def __init__(self, file: safe_open, name: str) -> None:
        self._file = file
        keys = list(file.keys())
        prefix = next(prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in keys) or not prefix)
        self._keys: dict[str, str] = {}
        """Keys in the file of the parameters, by their names here."""
        self._scales: dict[str, str] = {}
        """Keys of the scales of weights, by the names of those."""
        for key in keys:
            bare = key.removeprefix(prefix)
            module, _, leaf = bare.rpartition(".")
            if not key.startswith(prefix) or bare == _MARKER:
                continue
            if leaf in _SCALES:
                self._scales[comfyui_name(f"{module}.weight")] = key
            elif leaf not in _BESIDE:
                self._keys[comfyui_name(bare)] = key
        self.shapes = {known: tuple(file.get_slice(key).get_shape()) for known, key in self._keys.items()}
        """By names here."""
        self._check_formats(keys, name)

    def _check_formats(self, keys: list[str], name: str) -> None:
        layers = json.loads((self._file.metadata() or {}).get("_quantization_metadata", "{}")).get("layers", {})
        formats = [layer.get("format") for layer in layers.values()]
        formats += [json.loads(bytes(self._file.get_tensor(key).tolist())).get("format")
                    for key in keys if key.endswith(".comfy_quant")]
        other = next((each for each in formats if each not in _KNOWN_FORMATS), None)
        if other is not None:
            raise UserError(f"{name} holds weights as {other}, which only ComfyUI reads; take the file in bf16, fp16 "
                            "or fp8, or train this one in ComfyUI.")

    def value(self, name: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A parameter by its name here: a new tensor, dequantised."""
        value = self._file.get_tensor(self._keys[name])
        if name not in self._scales:
            return value.to(device, dtype, copy=True)
        return value.to(device, dtype).mul_(self._file.get_tensor(self._scales[name]).to(device, dtype))


@contextmanager
def opened(path: Path) -> Iterator[TransformerFile]:
    """A file, open inside the context.

    Raises:
        UserError: it is missing, damaged, or in a form that is not read here.
    """
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{path.name} is a GGUF file, which only ComfyUI reads; take the safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            yield TransformerFile(file, path.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a safetensors file of Wan's transformer, or a folder "
                        "that diffusers wrote.") from None
