"""What only the graph tells of what a node is given: the names of files that were loaded, the text of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

DEPTH = 100
"""Nodes between ours and the one that is looked for, at most."""


def above(prompt: Mapping, node: str, socket: str) -> str:
    """The id of the node that a socket is connected to, "" where it is not."""
    link = _inputs(prompt, node).get(socket)
    return str(link[0]) if isinstance(link, list) else ""


def file_above(prompt: Mapping, node: str, socket: str, widgets: Sequence[str]) -> str:
    """The name of the file that was loaded for a socket, without folders, "" where nothing tells it.

    Args:
        widgets: of loaders, that hold it; nodes in between have a socket of the same name.
    """
    return PurePath(widget_above(prompt, node, socket, widgets).replace("\\", "/")).name


def widget_above(prompt: Mapping, node: str, socket: str, widgets: Sequence[str]) -> str:
    """The text in the first of these widgets above a socket, as `file_above`; "" where there is none."""
    for _ in range(DEPTH):
        node = above(prompt, node, socket)
        inputs = _inputs(prompt, node)
        for widget in widgets:
            if isinstance(inputs.get(widget), str):
                return inputs[widget]
    return ""


def text_above(prompt: Mapping, node: str, socket: str) -> str | None:
    """The text that a CONDITIONING was made from by CLIP Text Encode; None where nothing tells it, or there is none."""
    inputs = _inputs(prompt, above(prompt, node, socket))
    return inputs["text"] if isinstance(inputs.get("text"), str) and "clip" in inputs else None


def _inputs(prompt: Mapping, node: str) -> Mapping:
    return (prompt.get(node) or {}).get("inputs", {})
