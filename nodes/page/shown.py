"""What our nodes showed last, so that a page that is opened anew, or a second one, shows it again.

Kept by workflow and node in one JSON file; without that file nothing is lost but what nodes show.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ...trainer.base.files import replacing
from ..backend import paths
from .asking import running_user

MAX_NODES = 500
"""The nodes that showed something most recently."""

COMPARISON = "wantune_compare"
"""What the page's player shows (web/compare/video_compare.js), among what a node shows."""

_lock = threading.Lock()


def key_of(hidden) -> tuple[str, str]:
    """(workflow, node) as the page knows them; the workflow is "" for a graph that was queued without a page.

    Of a node within subgraphs, ComfyUI gives the way to it ("5:12"), the page knows its last part.
    """
    extra = getattr(hidden, "extra_pnginfo", None)
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    workflow_id = workflow.get("id") if isinstance(workflow, dict) else None
    node = getattr(hidden, "unique_id", None)
    return str(workflow_id or ""), str(node or "").rsplit(":", 1)[-1]


def remember(hidden, kind: str, data: object) -> None:
    """Keep JSON-able data that the node with these hidden inputs shows; a full disk costs only this memory."""
    workflow, node = key_of(hidden)
    if not workflow:
        return
    name = _name(running_user(), workflow, node)
    with _lock, suppress(OSError):
        entries = _load()
        entries[name] = {**entries.pop(name, {}), kind: data}  # at the end: they are in the order of time
        entries = dict(list(entries.items())[-MAX_NODES:])
        with replacing(paths.shown_file()) as temporary:
            temporary.write_text(json.dumps(entries), encoding="utf-8")


def recall(user: str, workflow: str, node: str) -> dict[str, object]:
    """What this node of a user's workflow showed last, by kind."""
    with _lock:
        entries = _load()
    return {**entries.get(_name(None, workflow, node), {}), **entries.get(_name(user, workflow, node), {})}


def video_output(hidden, video: Path, data: dict, *outputs) -> io.NodeOutput:
    """A saved video as output and in ComfyUI's own player; where there is a page, our player shows `data` instead."""
    remember(hidden, "compare", data)
    return io.NodeOutput(InputImpl.VideoFromFile(str(video)), *outputs,
                         ui={**ui.PreviewVideo([paths.saved_result(video)]).as_dict(), COMPARISON: [data]})


def _name(user: str | None, workflow: str, node: str) -> str:
    return json.dumps([user if args.multi_user else None, workflow, node])


def _load() -> dict[str, dict]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(paths.shown_file().read_bytes())
        if isinstance(content, dict):
            return {name: entry for name, entry in content.items() if isinstance(entry, dict)}
    return {}
