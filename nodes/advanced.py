"""Widgets that few users need: the page hides them until they are asked for. docs/settings.md says why these."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from comfy_api.latest import io

ADVANCED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "WanTune_DatasetSettings": ("prepend_trigger", "shuffle_tags", "alpha_color", "condition_dropout"),
    "WanTune_CacheLatents": ("prompt_syntax",),
    "WanTune_TrainWanLoRA": ("attempt", "deterministic", "boundary", "order"),
    "WanTune_AdapterSettings": ("first_block", "last_block", "lokr_factor"),
    "WanTune_OptimizerSettings": (
        "beta1", "beta2", "eps", "weight_decay", "cycles", "power", "max_grad_norm", "use_average"),
    "WanTune_ObjectiveSettings": (
        "logit_mean", "logit_std", "mode_scale", "beta_a", "beta_b", "resolution_shift", "min_t", "max_t", "stratified",
        "weighting", "loss", "huber_delta", "noise_offset", "stills_min_t", "clips_min_t", "clips_max_t"),
    "WanTune_KeepSettings": ("evaluate_steps", "every_epochs", "every_steps", "keep_last"),
    "WanTune_MemorySettings": ("whole_blocks", "segments", "keep_attention", "inputs_in_ram", "compile"),
    "WanTune_PreviewSettings": ("every_steps",),
})
"""Names of widgets by node id: of each the default is right whatever else is set, which cannot be said of alpha."""


def marked(node_id: str, inputs: list[io.Input]) -> list[io.Input]:
    """The inputs of a node, of which the page is told which are advanced."""
    for each in inputs:
        if each.id in ADVANCED[node_id]:
            each.extra_dict = {**each.extra_dict, "advanced": True}  # no argument of inputs in ComfyUI 0.3.75
    return inputs
