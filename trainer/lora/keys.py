"""The keys of LoRA files: those of other trainers, normalized to the one form that WanTune writes.

ComfyUI silently skips keys that it does not know; here each key is understood, or reported as not understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..base.errors import UserError

PREFIX = "diffusion_model."

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "unet.")
_UNDERSCORE_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_", "lora_transformer_")

# longest first, since some end like others (processor.lora.down.weight and lora.down.weight)
_SUFFIXES = {
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "processor.lora.down.weight": "lora_A.weight",
    "processor.lora.up.weight": "lora_B.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
} | {
    kept: kept
    for kept in (
        "alpha", "dora_scale", "diff", "diff_b", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1",
        "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    )
}

# diffusers' names of Wan's modules (scripts/convert_wan_to_diffusers.py in huggingface/diffusers)
_FROM_DIFFUSERS = (
    (re.compile(r"\battn1\b"), "self_attn"),
    (re.compile(r"\battn2\b"), "cross_attn"),
    (re.compile(r"\bto_out\.0\b|\bto_out\b"), "o"),
    (re.compile(r"\badd_([kv])_proj\b"), r"\1_img"),
    (re.compile(r"\bto_([qkv])\b"), r"\1"),
    (re.compile(r"\bffn\.net\.0\.proj\b"), "ffn.0"),
    (re.compile(r"\bffn\.net\.2\b"), "ffn.2"),
    (re.compile(r"^condition_embedder\.text_embedder\.linear_1$"), "text_embedding.0"),
    (re.compile(r"^condition_embedder\.text_embedder\.linear_2$"), "text_embedding.2"),
    (re.compile(r"^condition_embedder\.time_embedder\.linear_1$"), "time_embedding.0"),
    (re.compile(r"^condition_embedder\.time_embedder\.linear_2$"), "time_embedding.2"),
    (re.compile(r"^condition_embedder\.time_proj$"), "time_projection.1"),
    (re.compile(r"^proj_out$"), "head.head"),
)

# Wan's names in kohya's form, where dots became underscores (lora_unet_blocks_0_self_attn_q): only some of the
# underscores become dots again
_UNDERSCORED = re.compile(
    r"blocks_(\d+)_(self_attn|cross_attn|attn1|attn2|ffn)_"
    r"(k_img|v_img|norm_q|norm_k|q|k|v|o|to_q|to_k|to_v|to_out_0|add_k_proj|add_v_proj|net_0_proj|net_2|0|2)"
)

_PAIRS = (
    ("lora_A.weight", "lora_B.weight"), ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"),
    ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"), ("hada_w1_a", "hada_w2_a"),
)
"""Matrices of a module that are useless without each other."""

_WIDTHS = {1536: "Wan2.1 1.3B", 3072: "Wan2.2 5B", 5120: "Wan 14B"}
"""Models by the width of their tokens (the in_features of self_attn.q)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Which modules of a LoRA match the Linears of a model."""

    matched: tuple[str, ...]
    unknown: tuple[str, ...]
    """Modules that the model does not have, and keys that are not understood."""
    misshapen: tuple[str, ...]
    """Modules that the model has with another shape."""

    @property
    def total(self) -> int:
        """Number of all modules of the LoRA."""
        return len(self.matched) + len(self.unknown) + len(self.misshapen)

    def __str__(self) -> str:
        return f"{len(self.matched)} of {self.total} modules matched"


def normalize(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same LoRA under the keys that WanTune writes, whichever trainer wrote it; keys not understood stay."""
    normalized = {}
    for key, value in state.items():
        module, suffix = split(key)
        normalized[f"{PREFIX}{_module_name(module)}.{suffix}" if suffix else key] = value
    return normalized


def modules_of(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{module: {matrix: tensor}} of a normalized state dict, without PREFIX; {key: {"": tensor}} if not understood."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        module, suffix = split(key)
        if suffix and module.startswith(PREFIX):
            modules.setdefault(module.removeprefix(PREFIX), {})[suffix] = value
        else:
            modules.setdefault(key, {})[""] = value
    return modules


def compare(state: Mapping[str, torch.Tensor], sizes: Mapping[str, tuple[int, int]]) -> Fit:
    """Match the modules of a normalized LoRA with the Linears of a model.

    Args:
        sizes: (out_features, in_features) of each of the model's Linears by its name.
    """
    matched, unknown, misshapen = [], [], []
    for module, tensors in modules_of(state).items():
        if module not in sizes:
            unknown.append(module)
        elif _size(tensors) not in (None, sizes[module]):
            misshapen.append(module)
        else:
            matched.append(module)
    return Fit(tuple(matched), tuple(unknown), tuple(misshapen))


def check_fit(state: Mapping[str, torch.Tensor], sizes: Mapping[str, tuple[int, int]]) -> Fit:
    """As `compare`, but refuses a LoRA that does not fit.

    Raises:
        UserError: the LoRA was made for another model; the message says for which, and what the model is.
    """
    fit = compare(state, sizes)
    if fit.misshapen or not fit.matched:
        raise UserError(f"This LoRA does not fit: it was made for {describe(state)}, the model is "
                        f"{describe_model(sizes)} ({fit}); load the model it was made for.")
    return fit


def check_complete(state: Mapping[str, torch.Tensor]) -> int:
    """The number of modules of a normalized LoRA, after a check that each has all its matrices.

    Raises:
        UserError: the LoRA is empty, or one of a pair of matrices is missing.
    """
    modules = modules_of(state)
    if not modules:
        raise UserError("The LoRA is empty; train one first.")
    for module, tensors in modules.items():
        for pair in (*_PAIRS, _lokr_factors(tensors)):
            halves = set(pair) & tensors.keys()
            if len(halves) == 1:
                raise UserError(f"The LoRA is incomplete: {module} has {halves.pop()} without the other matrix; "
                                "train or download it again.")
    return len(modules)


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """In words, which model a normalized LoRA was made for."""
    modules = modules_of(state)
    for module, tensors in modules.items():
        size = _size(tensors)
        if size and re.fullmatch(r"blocks\.\d+\.(self|cross)_attn\.[qkvo]", module):
            return _describe_width(size[1], list(modules))
    return f"something other than Wan (it has {next(iter(modules), 'nothing')})"


def describe_model(sizes: Mapping[str, tuple[int, int]]) -> str:
    """In words, which model these Linears belong to."""
    if "blocks.0.self_attn.q" not in sizes:
        return "not a Wan model"
    return _describe_width(sizes["blocks.0.self_attn.q"][1], list(sizes))


def split(key: str) -> tuple[str, str]:
    """(module, our name of the matrix, such as `lora_A.weight`) of a key; (key, "") if it is not understood."""
    for suffix, ours in _SUFFIXES.items():
        if key.endswith("." + suffix):
            return key[: -len(suffix) - 1], ours
        if key.endswith("_" + suffix) and suffix.startswith("lora."):  # diffusers' old `to_q_lora.down.weight`
            return key[: -len(suffix) - 1], ours
    return key, ""


def _module_name(module: str) -> str:
    for prefix in _UNDERSCORE_PREFIXES:
        if module.startswith(prefix):
            module = module.removeprefix(prefix)
            found = _UNDERSCORED.fullmatch(module)
            if found:
                module = f"blocks.{found[1]}.{found[2]}.{_dotted(found[3])}"
            break
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module, stripped = module.removeprefix(prefix), True
    for pattern, ours in _FROM_DIFFUSERS:
        module = pattern.sub(ours, module)
    return module


def _lokr_factors(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """A key that stands for each of the two factors, whether it is one matrix or the product of two."""
    first, second = (f"lokr_{name}" if f"lokr_{name}" in tensors else f"lokr_{name}_a" for name in ("w1", "w2"))
    return first, second


def _dotted(leaf: str) -> str:
    return {"to_out_0": "to_out.0", "net_0_proj": "net.0.proj", "net_2": "net.2"}.get(leaf, leaf)


def _size(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """(out_features, in_features) of a module's update, or None where its matrices do not tell."""
    if "lora_A.weight" in tensors and "lora_B.weight" in tensors:
        return tensors["lora_B.weight"].shape[0], tensors["lora_A.weight"][0].numel()
    if "hada_w1_a" in tensors and "hada_w1_b" in tensors:
        return tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1]
    factors = [_lokr_size(tensors, name) for name in ("lokr_w1", "lokr_w2")]
    if all(factors):
        return factors[0][0] * factors[1][0], factors[0][1] * factors[1][1]
    if "diff" in tensors and tensors["diff"].ndim == 2:
        return tuple(tensors["diff"].shape)
    return None


def _lokr_size(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, int] | None:
    """(rows, columns) of one factor, or None for a form that Linears do not have."""
    if name in tensors and tensors[name].ndim == 2:
        return tuple(tensors[name].shape)
    if {f"{name}_a", f"{name}_b"} <= tensors.keys() and "lokr_t2" not in tensors:
        return tensors[f"{name}_a"].shape[0], tensors[f"{name}_b"].shape[1]
    return None


def _describe_width(width: int, names: list[str]) -> str:
    found = (re.match(r"blocks\.(\d+)\.", name) for name in names)
    blocks = 1 + max((int(match[1]) for match in found if match), default=-1)
    return f"{_WIDTHS.get(width, 'a Wan model')} of width {width} with {blocks} blocks"
