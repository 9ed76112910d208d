"""LoRA files: writing them with metadata, reading those of any trainer, and continuing to train one.

We write `diffusion_model.<module>.lora_A.weight`, `.lora_B.weight` and `.alpha`, which ComfyUI, diffusers
and kijai's WanVideoWrapper read; LoKr and LoHa under LyCORIS' names (`.lokr_w1`, `.hada_w1_a` and so on), which ComfyUI
reads (comfy/weight_adapter/lokr.py and loha.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..base import tensors as tensor_files
from ..base.errors import UserError
from ..base.files import replacing
from ..base.refusals import in_a_sentence
from ..encoded.cache import CachedDataset
from ..settings.training import LoraConfig, TrainConfig
from .keys import PREFIX, check_complete, check_fit, check_is_lora, modules_of, normalize
from .matrices import split
from .scale import with_alphas


class LoraStateDict(dict):
    """The tensors of a LoRA with the `metadata` of its file; to ComfyUI a plain state dict (type LORA_MODEL).

    Args:
        file: the name of the file it was read from, "" if it was not.
        note: a sentence about the file for the user, or "".
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], file: str = "", note: str = ""
    ) -> None:
        super().__init__(tensors)
        self.metadata, self.file, self.note = dict(metadata), file, note


def from_adapter(state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The tensors of a file from an adapter's `state_dict`: keys prefixed, one fp32 scalar `.alpha` per module.

    Args:
        alpha: `LoraConfig.file_alpha`. Readers ignore it where LoKr's W2 is one full matrix, and so does training.
    """
    tensors = {}
    for key, value in state.items():
        module = split(key)[0]
        tensors[f"{PREFIX}{key}"] = value
        tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    return tensors


def metadata(
    config: TrainConfig, dataset: CachedDataset, name: str, base_model: str, base_digest: str, step: int,
    expert: str = "",
) -> dict[str, str]:
    """The metadata of a file, as LoRA managers show it: kohya's `ss_*`, Stability's `modelspec.*`, our own `wantune.*`.

    Sources: kohya-ss/sd-scripts docs/train_network_README; Stability-AI/ModelSpec.

    Args:
        expert: "high" or "low" where it was trained for an expert of Wan2.2 A14B.
    """
    frequency = {f"{len(dataset.samples)}_{dataset.trigger_word or name}": Counter(dataset.captions)}
    return {
        "ss_output_name": name,
        "ss_base_model_version": dataset.family.architecture,
        "ss_sd_model_name": base_model,
        **_network(config.lora),
        "ss_learning_rate": str(config.learning_rate),
        "ss_num_train_images": str(sum(sample.repeats for sample in dataset.samples)),
        "ss_num_epochs": str(config.epochs),
        "ss_steps": str(step),
        "ss_seed": str(config.seed),
        "ss_optimizer": config.optimizer.name,
        "ss_tag_frequency": json.dumps(frequency),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{dataset.family.architecture}/lora",
        "modelspec.implementation": dataset.family.implementation,
        "modelspec.title": name,
        "modelspec.trigger_phrase": dataset.trigger_word,
        "modelspec.prediction_type": "flow",
        "wantune.base_model": base_model,
        "wantune.base_model_digest": base_digest,
        "wantune.data_digest": dataset.digest,
        "wantune.trigger_word": dataset.trigger_word,
        "wantune.step": str(step),
        "wantune.config": json.dumps(config.to_dict()),
        **(_of_expert(expert, dataset) if expert else {}),
    }


def _of_expert(expert: str, dataset: CachedDataset) -> dict[str, str]:
    """What differs for an expert of Wan2.2 A14B: its base model has the name by which Civitai and LoRA managers file it
    (musubi-tuner writes "wan" for every Wan, ai-toolkit "wan22_14b")."""
    kind = "I2V" if "I2V" in dataset.family.name else "T2V"
    return {
        "ss_base_model_version": f"Wan Video 2.2 {kind}-A14B",
        "modelspec.architecture": "wan2.2/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.2",
        "wantune.expert": expert,
    }


def _network(lora: LoraConfig) -> dict[str, str]:
    """kohya's names of the adapter's settings; LyCORIS is a module of its own there."""
    is_lycoris = lora.kind in ("lokr", "loha")
    arguments = {"algo": lora.kind} | ({"factor": str(lora.lokr_factor)} if lora.kind == "lokr" else {})
    return {
        "ss_network_module": "lycoris.kohya" if is_lycoris else "networks.lora_wan",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.file_alpha),
        **({"ss_network_args": json.dumps(arguments)} if is_lycoris else {}),
    }


def save(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file as a whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    tensors = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
    with in_a_sentence(f"{path.name} cannot be written", path.parent), replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata})


def load(path: Path) -> LoraStateDict:
    """Read any LoRA file, keys normalized.

    Raises:
        UserError: not a safetensors file, damaged, or no LoRA.
    """
    lora = read(path)
    return LoraStateDict(normalize(lora), lora.metadata)


def read(path: Path) -> LoraStateDict:
    """Read any LoRA file under its own keys, with the `.alpha` tensors that its writer keeps elsewhere (scale.py).

    Raises:
        UserError: not a safetensors file, damaged, or no LoRA.
    """
    try:
        tensors, metadata = tensor_files.read(path)
    except (OSError, SafetensorError) as error:
        raise UserError(_unreadable(path, error)) from None
    check_is_lora(tensors, path.name)
    tensors, note = with_alphas(tensors, metadata, path)
    return LoraStateDict(tensors, metadata, path.name, note)


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file is no safetensors file, by its first bytes."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(64)
        if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
            return (f"{path.name} is a pickle file, as .pt and .ckpt files are, which can run code and is not read "
                    "here; save it as .safetensors, or use ComfyUI's own Load LoRA.")
        if start.startswith(b"version https://git-lfs"):
            return f"{path.name} is only a pointer to a file of Git LFS; download the file itself."
        if start.lstrip()[:1] == b"<":
            return f"{path.name} is a web page and no LoRA; download the file itself, logged in where its site asks."
    return f"{path.name} cannot be read as safetensors ({error}); download or save it again."


def continued(
    state: Mapping[str, torch.Tensor], lora: LoraConfig, sizes: Mapping[str, tuple[int, int]]
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Settings and initial matrices for continuing to train a LoRA that `load` has read.

    Rank and alpha come from the file and not from `lora`. Where modules differ, the highest rank and its most frequent
    alpha are taken, and a module with another alpha / rank has its B rescaled, so that its update stays the same.

    Args:
        sizes: (out_features, in_features) of each of the model's Linears by its name.

    Returns:
        The settings, and `<module>.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank) for `Adapter.start_from`.

    Raises:
        UserError: the state is no plain LoRA (DoRA, LoKr, LoHa ...), is incomplete, or is for another model.
    """
    if lora.kind not in ("lora", "rslora"):
        raise UserError(f"kind is {lora.kind}, but only a plain LoRA can be continued; choose lora or rslora.")
    check_complete(state)
    modules = {name: tensors for name, tensors in modules_of(state).items() if tensors.keys() != {"alpha"}}
    _check_plain(modules)
    fit = check_fit(state, sizes)
    if fit.unknown:
        raise UserError(f"The LoRA to continue has {len(fit.unknown)} modules that the model does not have, such as "
                        f"{fit.unknown[0]}; load the model it was made for.")
    ranks = {name: len(tensors["lora_A.weight"]) for name, tensors in modules.items()}
    alphas = {name: float(tensors.get("alpha", ranks[name])) for name, tensors in modules.items()}
    rank = max(ranks.values())
    alpha = Counter(alphas[name] for name in modules if ranks[name] == rank).most_common(1)[0][0]
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"The LoRA to continue has the alpha {alpha:g}, with which nothing can be learned; "
                        "train a new one.")
    matrices = {}
    for name, tensors in modules.items():
        factor = (alphas[name] / ranks[name]) / (alpha / rank)
        b = tensors["lora_B.weight"].flatten(1).float()
        matrices[f"{name}.lora_A.weight"] = tensors["lora_A.weight"].flatten(1).float()
        matrices[f"{name}.lora_B.weight"] = b if factor == 1 else b * factor
    alpha = alpha / math.sqrt(rank) if lora.kind == "rslora" else alpha
    return replace(lora, rank=rank, alpha=alpha, start=_digest(matrices)), matrices


def _check_plain(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    kinds = {"dora_scale": "DoRA", "lokr": "LoKr", "hada": "LoHa", "diff": "changes of whole weights",
             "set_weight": "changes of whole weights", "w_norm": "changes of whole weights", "oft": "OFT"}
    for module, tensors in modules.items():
        for name in tensors:
            if name and name not in ("lora_A.weight", "lora_B.weight", "alpha"):
                kind = next((kind for start, kind in kinds.items() if name.startswith(start)), name)
                raise UserError(f"The LoRA to continue holds {kind} ({module}.{name}), but only a plain LoRA can be "
                                "continued; apply it with Apply LoRA and train a new one on top of it.")


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256, in hex, of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
