"""Whether folders that a node was given over a link have changed.

ComfyUI asks a node for its fingerprint before anything runs, and gives it None for what is linked. What is linked is as
it was unless a node before it is run again, and then this one is as well. So what the node was given last is looked at,
and its fingerprint counts the changes: while there are none, neither it nor what follows runs again.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable

from comfy_execution.utils import get_executing_context

MAX_FOLDERS = 16
"""That are looked at for a node: a page with several workflows has several nodes of one id. An older one counts as
changed."""

_given: dict[str, OrderedDict[str, str]] = {}
"""The state of each folder when it was last looked at, by node id."""

_changes: defaultdict[str, int] = defaultdict(int)
"""The changes of a node's folders since ComfyUI started, by node id."""


def changes(state_of: Callable[[str], str]) -> int:
    """The fingerprint of the node that ComfyUI asks: how often a folder was seen to have changed.

    Args:
        state_of: returns something that differs when a folder has changed.
    """
    node = _node()
    for folder in list(_given.setdefault(node, OrderedDict())):
        _look(node, folder, state_of)
    return _changes[node]


def given(folder: str, state_of: Callable[[str], str]) -> None:
    """The node that runs is about to read a folder; does nothing unless it was linked when ComfyUI asked."""
    if _node() in _given:
        _look(_node(), folder, state_of)


def _look(node: str, folder: str, state_of: Callable[[str], str]) -> None:
    known, state = _given[node], state_of(folder)
    if known.get(folder, state) != state:
        _changes[node] += 1
    known[folder] = state
    known.move_to_end(folder)
    if len(known) > MAX_FOLDERS:
        known.popitem(last=False)
        _changes[node] += 1


def _node() -> str:
    context = get_executing_context()
    return "" if context is None else str(context.node_id)
