"""LoRA files: what is written, with which metadata, and how any of them is read.

We write `diffusion_model.<module>.lora_A.weight`, `.lora_B.weight` and `.alpha`, which ComfyUI, diffusers
and kijai's WanVideoWrapper read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .cache import CachedDataset
from .config import TrainConfig, UserError
from .files import replacing
from .lora_keys import PREFIX, normalize


class LoraStateDict(dict):
    """A LORA_MODEL that remembers what it is: a plain state dict to ComfyUI, with `metadata` for us."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def from_adapter(state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The file's tensors of an adapter's `state_dict`: prefixed, with one fp32 `.alpha` a module."""
    tensors = {}
    for key, value in state.items():
        module, kind = key.rsplit(".lora_", 1)
        tensors[f"{PREFIX}{module}.lora_{kind}"] = value
        tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    return tensors


def metadata(
    config: TrainConfig, dataset: CachedDataset, name: str, base_model: str, base_digest: str, step: int
) -> dict[str, str]:
    """What LoRA managers show of a file: kohya's `ss_*`, Stability's `modelspec.*`, and our own settings.

    Sources: kohya-ss/sd-scripts docs/train_network_README; Stability-AI/ModelSpec.
    """
    frequency = {f"{len(dataset.clips)}_{dataset.trigger_word or name}": Counter(dataset.captions)}
    return {
        "ss_output_name": name,
        "ss_base_model_version": "wan2.1",
        "ss_sd_model_name": base_model,
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": str(config.lora.alpha),
        "ss_learning_rate": str(config.learning_rate),
        "ss_num_train_images": str(sum(clip.repeats for clip in dataset.clips)),
        "ss_num_epochs": str(config.epochs),
        "ss_steps": str(step),
        "ss_seed": str(config.seed),
        "ss_optimizer": "AdamW",
        "ss_tag_frequency": json.dumps(frequency),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "wan2.1/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "modelspec.title": name,
        "modelspec.trigger_phrase": dataset.trigger_word,
        "modelspec.prediction_type": "flow",
        "wantune.base_model": base_model,
        "wantune.base_model_digest": base_digest,
        "wantune.data_digest": dataset.digest,
        "wantune.trigger_word": dataset.trigger_word,
        "wantune.step": str(step),
        "wantune.config": json.dumps(config.to_dict()),
    }


def save(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file as a whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    tensors = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", **metadata})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.name} could not be written ({error}); free some space or check the folder's "
                        "permissions.") from None


def load(path: Path) -> LoraStateDict:
    """Read any LoRA file, keys normalized.

    Raises:
        UserError: not a safetensors file, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
            metadata = file.metadata() or {}
            return LoraStateDict(_with_alpha(normalize(tensors), metadata), metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.name} cannot be read as safetensors ({error}); download or save it again.") from None


def _with_alpha(state: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Write out the alpha that diffusers keeps in the file's metadata; without it the scale would be 1."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        alpha = next((float(v) for k, v in settings.items() if k.split(".")[-1] == "lora_alpha"), None)
    except (ValueError, AttributeError, TypeError):
        return state
    if alpha is None:
        return state
    modules = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    return {**{f"{module}.alpha": torch.tensor(alpha) for module in modules}, **state}
