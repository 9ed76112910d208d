"""The name of the file that a MODEL was loaded from: all that tells Wan2.1 from the experts of Wan2.2."""

from __future__ import annotations

from pathlib import Path, PurePath

import folder_paths

_LOADERS = ("unet_name", "ckpt_name", "model_name", "gguf_name")
"""Inputs of the nodes that load models, ComfyUI's own first."""

_DEPTH = 100
"""Nodes between ours and the loader, at most."""


_KINDS = {"model": ("diffusion_models", "unet_gguf", "checkpoints"), "vae": ("vae",), "clip": ("text_encoders",),
          "clip_vision": ("clip_vision",)}
"""The lists of ComfyUI in which the files of models stand, by what they are."""


def path_of(name: str, model: object = None, kind: str = "model") -> Path | None:
    """The file of this name in ComfyUI's folders; None where there is none, or another of the same name.

    Args:
        model: the MODEL, which may know it.
        kind: model, vae, clip or clip_vision.
    """
    made_by = getattr(model, "cached_patcher_init", None)
    if made_by and isinstance(made_by[1][0], str) and Path(made_by[1][0]).is_file():
        return Path(made_by[1][0])
    listed = [folder_paths.get_full_path(each, file) for each in _KINDS[kind]
              if each in folder_paths.folder_names_and_paths for file in folder_paths.get_filename_list(each)
              if PurePath(file).name == name]
    found = {Path(path).resolve() for path in listed if path}
    return found.pop() if len(found) == 1 else None


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
