"""The keys of LoRA files: those of other trainers, normalized to the one form that WanTune writes.

ComfyUI silently skips keys that it does not know; here each key is understood, or reported as not understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..base.errors import UserError
from .made_for import describe, describe_model
from .matrices import check_sound, missing_half, size, split
from .names import comfyui_names, core_underscored, wan_name

PREFIX = "diffusion_model."


@dataclass(frozen=True, slots=True)
class Fit:
    """Which modules of a LoRA match those of a model."""

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


@dataclass(frozen=True, slots=True)
class Named:
    """A key of a file, understood."""

    module: str
    """As the file calls it."""
    name: str
    """Wan's own name of the module, "" if it is no module of a diffusion model."""
    matrix: str
    """Our name of the matrix, "" if it is none that is known."""
    adapter: str
    """PEFT's name of the adapter, mostly ""."""

    @classmethod
    def of(cls, key: str) -> Named:
        """Any key of a LoRA file."""
        module, matrix, adapter = split(key)
        return cls(module, wan_name(module) if matrix else "", matrix, adapter)

    @property
    def is_comfyui(self) -> bool:
        """Whether ComfyUI's own loader reads the module under this name."""
        return self.module in comfyui_names(self.name) and self.adapter in ("", "default")

    @property
    def key(self) -> str:
        """The key under which WanTune writes it, or with a name of underscores that ComfyUI may know."""
        return f"{PREFIX}{self.name}.{self.matrix}" if self.name else f"{core_underscored(self.module)}.{self.matrix}"


def normalize(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same LoRA under the keys that WanTune writes, whichever trainer wrote it; keys not understood stay.

    Where a file has a module twice, under two names or for two adapters, the one that ComfyUI reads is taken, else the
    first; the other's keys stay as they are.
    """
    named = {key: Named.of(key) for key in state}
    modules: dict[str, str] = {}
    for entry in named.values():
        known = modules.setdefault(entry.name, entry.module)
        if _precedence(entry.name, entry.module) > _precedence(entry.name, known):
            modules[entry.name] = entry.module
    adapters: dict[str, str] = {}
    for entry in named.values():
        if entry.module == modules[entry.name] and entry.matrix.startswith("lora_"):
            known = adapters.setdefault(entry.name, entry.adapter)
            adapters[entry.name] = min(known, entry.adapter, key=("", "default", known).index) if (
                entry.adapter in ("", "default")) else known
    normalized = {}
    for key, value in state.items():
        entry = named[key]
        is_taken = entry.module == modules[entry.name] and entry.adapter in ("", adapters.get(entry.name, ""))
        if not entry.matrix or (entry.name and not is_taken):
            normalized[key] = value
        elif entry.matrix == "lora_magnitude_vector":  # PEFT's DoRA; dora_scale is a column
            normalized[entry.key.replace(entry.matrix, "dora_scale")] = value.reshape(-1, 1)
        else:
            normalized[entry.key] = value
    return _with_middle(normalized)


def _precedence(name: str, module: str) -> int:
    """Which of two names of a module ComfyUI's loader takes: the one with dots."""
    dotted, underscored = comfyui_names(name)
    return 2 * (module == dotted) + (module == underscored)


def _with_middle(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ComfyUI reads the third matrix of a convolution's LoRA only beside lora_down and lora_up."""
    for key in [key for key in state if key.endswith(".lora_mid.weight")]:
        module = key.removesuffix(".lora_mid.weight")
        for ours, theirs in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            if f"{module}.{ours}.weight" in state:
                state[f"{module}.{theirs}.weight"] = state.pop(f"{module}.{ours}.weight")
    return state


def modules_of(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{module: {matrix: tensor}} of a normalized state dict, without PREFIX; {key: {"": tensor}} if not understood."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        module, matrix, _ = split(key)
        modules.setdefault(module.removeprefix(PREFIX) if matrix else key, {})[matrix] = value
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
        elif size(tensors) not in (None, sizes[module]) or ("lora_A.weight" in tensors and size(tensors) is None):
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
        raise does_not_fit(state, sizes, fit)
    return fit


def does_not_fit(state: Mapping[str, torch.Tensor], sizes: Mapping[str, tuple[int, int]], fit: Fit) -> UserError:
    """The sentence that says for which model a normalized LoRA was made, and what the model is."""
    return UserError(f"This LoRA does not fit: it was made for {describe(modules_of(state))}, the model is "
                     f"{describe_model(sizes)} ({fit}); load the model it was made for.")


def check_is_lora(state: Mapping[str, torch.Tensor], what: str = "The LoRA") -> None:
    """Check that a state dict, normalized or not, is a LoRA at all.

    Args:
        what: begins the sentence, such as the file's name.

    Raises:
        UserError: it is empty, a whole model, or something else without a matrix of a LoRA.
    """
    if not state:
        raise UserError(f"{what} is empty; train one first.")
    if any(matrix and matrix not in ("alpha", "rescale") for _, matrix, _ in map(split, state)):
        return
    names = [key.rsplit(".", 1)[0] for key in state]
    if any(name.endswith("self_attn.q") or name.endswith("attn1.to_q") for name in names):
        raise UserError(f"{what} is a whole model and no LoRA; load it with Load Diffusion Model.")
    raise UserError(f"{what} holds no LoRA (its first key is {next(iter(state))}); choose a LoRA file.")


def check_complete(state: Mapping[str, torch.Tensor]) -> int:
    """The number of modules of a normalized LoRA, after a check that each is sound and has all its matrices.

    Raises:
        UserError: the LoRA is empty, one of a pair of matrices is missing, or a matrix cannot be computed with.
    """
    check_is_lora(state)
    modules = modules_of(state)
    check_sound(modules)
    for module, tensors in modules.items():
        half = missing_half(tensors)
        if half:
            raise UserError(f"The LoRA is incomplete: {module} has {half} without the other matrix; "
                            "train or download it again.")
    return len(modules)
