"""The name of the file that a MODEL was loaded from: all that tells Wan2.1 from the experts of Wan2.2."""

from __future__ import annotations

from pathlib import PurePath

_LOADERS = ("unet_name", "ckpt_name", "model_name", "gguf_name")
"""Inputs of the nodes that load models, ComfyUI's own first."""

_DEPTH = 100
"""Nodes between ours and the loader, at most."""


def file_of(model, hidden, socket: str = "model") -> str:
    """The file's name, or "" where nothing tells it.

    Args:
        model: a MODEL; newer versions of ComfyUI keep in it how it was loaded.
        hidden: the hidden inputs of the node that has the MODEL, whose graph is else asked for the loader above the
            node; None where there is no node.
        socket: the input of the node that the MODEL comes from.
    """
    made_by = getattr(model, "cached_patcher_init", None)
    if made_by and isinstance(made_by[1][0], str):
        return PurePath(made_by[1][0].replace("\\", "/")).name
    prompt, node = (hidden.prompt or {}, hidden.unique_id) if hidden else ({}, None)
    for _ in range(_DEPTH):
        inputs = (prompt.get(node) or {}).get("inputs", {})
        for name in _LOADERS:
            if isinstance(inputs.get(name), str):
                return PurePath(inputs[name].replace("\\", "/")).name
        above = inputs.get(socket)
        if not isinstance(above, list):
            return ""
        node, output = str(above[0]), above[1]
        has_two = "model_low" in (prompt.get(node) or {}).get("inputs", {})
        socket = "model_low" if has_two and output == 1 else "model"  # our Apply LoRA hands on two
    return ""
