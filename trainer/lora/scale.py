"""The scale of a LoRA where its writer keeps it beside the matrices: in the file's header or in adapter_config.json.

ComfyUI computes alpha / rank from a module's `.alpha` tensor and takes 1 where there is none. So what the settings say
becomes such tensors, for modules that have none and that ComfyUI would not read under their name: what it reads, it
scales by 1, and trainers that write its names have the scale in the matrices (musubi-tuner's convert_lora.py, which
keeps kohya's header all the same).

Sources: PEFT tuners/lora/layer.py (alpha / r, or alpha / sqrt(r) with use_rslora; alpha_pattern by get_pattern_key);
diffusers loaders/lora_base.py (lora_adapter_metadata); kohya-ss/sd-scripts (ss_network_alpha).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base.errors import UserError
from .keys import Named
from .names import bare_name

_ALPHAS = ("lora_alpha", "network_alpha", "ss_network_alpha", "lora_network_alpha", "alpha")
"""Names of alpha in headers and settings."""

_OTHER_PARTS = ("text_encoder", "te.", "clip")

_MATRICES = {"lora_A.weight": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0}
"""Matrices whose size along this dimension is the module's rank, by which a reader divides alpha."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a writer says of the scale: s = alpha / rank, or alpha / sqrt(rank)."""

    alpha: float | None
    patterns: Mapping[str, float]
    """alpha of the modules whose name ends with such a part, or matches it as a regular expression."""
    is_rslora: bool
    is_kohya: bool
    """Whether alpha is kohya's, who writes `.alpha` tensors: where there are none, another has multiplied them in."""

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The `.alpha` with which alpha / rank is the module's scale; None if nothing is said of it."""
        bare = bare_name(module)
        alpha = next((alpha for part, alpha in self.patterns.items() if _is_one(part, bare)), self.alpha)
        if alpha is None:
            return None
        if not math.isfinite(alpha):
            raise UserError(f"The LoRA's settings give {module} the alpha {alpha}; download or save it again.")
        return alpha * math.sqrt(rank) if self.is_rslora else alpha


def with_alphas(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a file, under its own keys, and those `.alpha` tensors that its writer left out.

    Args:
        metadata: the file's header.
        path: the file, beside which adapter_config.json may lie.

    Returns:
        The tensors, and a sentence about a scale that is not heeded because ComfyUI does not heed it, or "".

    Raises:
        UserError: the settings hold an alpha that is no finite number.
    """
    named = {key: Named.of(key) for key in tensors}
    told = {entry.module for entry in named.values() if entry.matrix == "alpha"}
    settings = [*_in_header(metadata), *_beside(path, tensors)]
    added, note = {}, ""
    for key, entry in named.items():
        if entry.matrix not in _MATRICES or entry.module in told or not tensors[key].ndim:
            continue
        rank = tensors[key].shape[_MATRICES[entry.matrix]]
        scale = next((scale for part, scale in settings if entry.module.startswith(part)), None)
        alpha = scale.alpha_of(entry.module, rank) if scale and rank else None
        if alpha is not None and not entry.is_comfyui:
            added[f"{entry.module}.alpha"] = torch.tensor(alpha, dtype=torch.float64)
        elif alpha not in (None, rank) and not scale.is_kohya:
            note = (f"The file's settings say alpha {alpha:g} at rank {rank}, but ComfyUI's own loader applies such "
                    f"files at scale 1, and so does this; strength {alpha / rank:g} is what the settings ask for.")
    return {**tensors, **added}, note


def _in_header(metadata: Mapping[str, str]) -> Iterator[tuple[str, Scale]]:
    """(beginning of the module names it is about, scale) of each set of settings in a header, most telling first."""
    for value in metadata.values():
        content = _json(value)
        if isinstance(content, dict):
            yield from _sets(content)
    yield from _sets(dict(metadata))


def _sets(content: Mapping) -> Iterator[tuple[str, Scale]]:
    """The settings in a record, whose names may carry the part of the pipeline they are about (transformer.r)."""
    parts: dict[str, dict] = {}
    for key, value in content.items():
        part, _, name = key.rpartition(".")
        if not key.startswith(_OTHER_PARTS):
            parts.setdefault(f"{part}." if part else "", {})[name] = value
    for part in sorted(parts, key=len, reverse=True):
        scale = _scale(parts[part])
        if scale:
            yield part, scale
            if not part.startswith("transformer_2"):
                yield "", scale


def _scale(settings: Mapping) -> Scale | None:
    name = next((name for name in _ALPHAS if _number(settings.get(name)) is not None), "")
    alpha = _number(settings.get(name))
    patterns = settings.get("alpha_pattern") or {}
    patterns = _json(patterns) if isinstance(patterns, str) else patterns
    known = {str(part): number for part, value in patterns.items() if (number := _number(value)) is not None} if (
        isinstance(patterns, Mapping)) else {}
    if alpha is None and not known:
        return None
    is_rslora = any(str(settings.get(name)).lower() in ("true", "1") for name in ("use_rslora", "rslora"))
    return Scale(alpha, known, is_rslora, name.startswith("ss_"))


def _beside(path: Path, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Scale]]:
    """PEFT's adapter_config.json in the file's folder, where it can only be about this file."""
    is_peft = path.stem.startswith("adapter_model") or all(key.startswith("base_model.model.") for key in tensors)
    if not is_peft and len(list(path.parent.glob("*.safetensors"))) > 1:
        return
    with suppress(OSError):
        content = _json((path.parent / "adapter_config.json").read_text(encoding="utf-8", errors="replace"))
        scale = _scale(content) if isinstance(content, dict) else None
        if scale:
            yield "", scale


def _is_one(part: str, module: str) -> bool:
    """Whether PEFT takes a key of alpha_pattern to mean this module."""
    with suppress(re.error):
        return re.fullmatch(rf"(.*\.)?({part})", module) is not None
    return module == part or module.endswith(f".{part}")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _json(text: str) -> object:
    with suppress(ValueError):
        return json.loads(text)
    return None
