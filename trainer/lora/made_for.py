"""Which model a LoRA was made for, and which a model is: what keys, widths and file names tell, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from ..base.errors import UserError
from .matrices import size

_WIDTHS = {1536: "Wan2.1 1.3B", 3072: "Wan2.2 5B", 5120: "Wan 14B"}
"""Models by the width of their tokens (the in_features of self_attn.q)."""

_SAME_SHAPES = " (Wan2.1, or an expert of Wan2.2 A14B: their shapes are the same)"

_OTHERS = (
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img_mlp|txt_mlp|img_mod|txt_mod)"),
    ("HunyuanVideo", r"double_blocks[._]\d+[._](img|txt)_attn_(qkv|proj)\.|token_refiner|txt_in[._]individual"),
    ("HunyuanVideo", r"double_blocks[._]19[._]|single_blocks[._]3[89][._]"),
    ("Flux or HunyuanVideo", r"(double|single)_blocks[._]\d+[._]|single_transformer_blocks[._]\d+[._]"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d+[._]"),
    ("Stable Diffusion XL", r"lora_te2_|text_encoder_2\.|(down|input)_blocks[._]\w*.*transformer_blocks[._][2-9][._]"),
    ("Stable Diffusion", r"(down|up|mid|input|output|middle)_blocks?[._]\d*.*"),
    ("LTX-Video or another model of diffusers", r"transformer_blocks[._]\d+[._]attn[12]?[._]"),
    ("Cosmos", r"blocks[._]\d+[._](self|cross)_attn[._](q|k|v|output)_proj"),
    ("Lumina or Z-Image", r"layers[._]\d+[._](attention|feed_forward)[._]"),
)
"""Other models by what their modules are called, most telling first."""


def describe(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """In words, which model a normalized LoRA was made for.

    Args:
        modules: what `modules_of` in keys.py gives.
    """
    found = next(filter(None, map(_width, modules, modules.values())), None)
    if found:
        return _describe_width(found, list(modules))
    for other, pattern in _OTHERS:
        if any(re.search(pattern, f"{module}.") for module in modules):
            return f"{other}, which is something other than Wan (it has {next(iter(modules))})"
    return f"something other than Wan (it has {next(iter(modules), 'nothing')})"


def describe_model(sizes: Mapping[str, tuple[int, int]]) -> str:
    """In words, which model these Linears belong to: {name: (out_features, in_features)}."""
    if "blocks.0.self_attn.q" not in sizes:
        return "not a Wan model"
    return _describe_width(sizes["blocks.0.self_attn.q"][1], list(sizes))


def base_model(family: str, sizes: Mapping[str, tuple[int, int]], file: str = "") -> str:
    """In words, such as "Wan2.1 14B of width 5120 with 40 blocks", which model a LoRA is trained on.

    Args:
        family: its name, which says what the network takes beside the noise; see trainer/model/families.py.
        sizes: (out_features, in_features) of its Linears by name.
        file: its file's name, which may say whether a model of 14B is Wan2.1 or an expert of Wan2.2 A14B.
    """
    told = told_by_name(file)
    said = f"; by its file's name {told}" if told else ""
    described = describe_model(sizes)
    width = sizes.get("blocks.0.self_attn.q", (0, 0))[1]
    if family == "Wan2.1 T2V":
        if width == 5120 and _version(file) == "Wan2.1":
            return described.removesuffix(_SAME_SHAPES).replace("Wan 14B", "Wan2.1 14B", 1)
        return described + said
    words = described.split(" (")[0]
    size = {1536: "1.3B", 5120: "A14B" if family in ("Wan2.2 I2V", "Wan2.2 Fun-Control") else "14B"}.get(width)
    if size is None:
        words = words.replace("a Wan model", f"a {family} model", 1)
    else:
        words = f"{family} {size} {words[words.index('of width'):]}"
    return words if told in words else words + said


def differences(lora: str, model: str, lora_expert: str = "", model_expert: str = "") -> tuple[str, ...]:
    """Sentences about what the names of a LoRA (file, header) and of a model (file) tell, where they differ.

    Wan2.1 14B and both experts of Wan2.2 A14B have the same shapes, so that only names tell them apart.

    Args:
        lora_expert: "high" or "low" where the LoRA's header says for which expert it was trained (`expert_of`).
        model_expert: likewise where the user says which expert the model is.
    """
    sentences = []
    theirs, ours = lora_expert or expert_by_name(lora), model_expert or expert_by_name(model)
    if theirs and ours and theirs != ours:
        if lora_expert or model_expert:
            sentences.append(f"The LoRA was made for the {theirs}-noise expert, and it is on the {ours}-noise one.")
        else:
            sentences.append(f"By its name the LoRA was made for the {theirs}-noise expert, by its name the model is "
                             f"the {ours}-noise expert.")
    theirs, ours = _version(lora), _version(model)
    if theirs and ours and theirs != ours:
        sentences.append(f"By its name the LoRA was made for {theirs}, by its name the model is {ours}.")
    return tuple(sentences)


def expert_of(metadata: Mapping[str, str]) -> str:
    """For which expert of Wan2.2 A14B a LoRA was made by its header, "high" or "low"; "" where that says nothing."""
    told = metadata.get("wantune.expert", "")
    return told if told in ("high", "low") else ""


def check_not_swapped(high: Mapping[str, str], low: Mapping[str, str]) -> None:
    """UserError where the headers of two LoRAs say that each is for the other expert than the one it is taken for."""
    if expert_of(high) == "low" and expert_of(low) == "high":
        raise UserError("lora was trained for the low-noise expert and lora_low for the high-noise one; swap lora and "
                        "lora_low.")


def told_by_name(name: str) -> str:
    """What a model's file name tells of Wan2.2, such as "the low-noise expert of Wan2.2 A14B"; "" if nothing."""
    noise = expert_by_name(name)
    if noise:
        return f"the {noise}-noise expert of Wan2.2 A14B"
    return "Wan2.2" if _version(name) == "Wan2.2" else ""


def expert_by_name(name: str) -> str:
    """Which expert of Wan2.2 A14B a file's name tells of, "high" or "low"; "" if none."""
    name = name.lower()
    is_wan22 = _version(name) == "Wan2.2" or "a14b" in name  # elsewhere "low" may be of the resolution
    alone = r"|(?<![a-z0-9])(?:(high|low)|([hl])n?)(?![a-z0-9])" if is_wan22 else ""
    found = re.search(rf"(high|low)[ _.-]*noise{alone}", name)
    if not found:
        return ""
    return "high" if next(filter(None, found.groups())).startswith("h") else "low"


def _version(name: str) -> str:
    found = re.search(r"wan[ _.-]*(?:video)?[ _.-]*v?2[._]?([12])(?!\d)", name.lower())
    return f"Wan2.{found[1]}" if found else ""


def _width(module: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The width of the model's tokens, as far as this module tells it."""
    leaf = re.fullmatch(r"(?:vace_)?blocks\.\d+\.(.+)", module)
    found = size(tensors)
    if leaf and found:
        if re.fullmatch(r"(self|cross)_attn\.[qkvo]|ffn\.0", leaf[1]):
            return found[1]
        return found[0] if leaf[1] == "ffn.2" else None
    if leaf and "diff" in tensors and re.search(r"norm\w*$|modulation$", leaf[1]):
        return tensors["diff"].shape[-1] if tensors["diff"].ndim else None
    if leaf and "diff_b" in tensors and re.fullmatch(r"(self|cross)_attn\.[qkvo]|ffn\.2|norm3", leaf[1]):
        return tensors["diff_b"].shape[-1] if tensors["diff_b"].ndim else None
    return None


def _describe_width(width: int, names: Iterable[str]) -> str:
    names = list(names)
    found = (re.match(r"blocks\.(\d+)\.", name) for name in names)
    blocks = 1 + max((int(match[1]) for match in found if match), default=-1)
    model = _WIDTHS.get(width, "a Wan model")
    kind = _SAME_SHAPES if width == 5120 else ""
    if any("cross_attn.k_img" in name or name.startswith("img_emb.") for name in names):
        kind = " (Wan2.1 image-to-video: it has modules for the image)"
    elif any(name.startswith("vace_") for name in names):
        kind = " (VACE: it has vace_blocks)"
    return f"{model} of width {width} with {blocks} blocks{kind}"
