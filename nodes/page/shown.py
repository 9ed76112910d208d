"""Remembers what our nodes showed last, so that a page that is reloaded, or a second one, shows it again.

Kept by user, workflow and node in an SQLite file, which may be deleted: only what nodes show is lost with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ...trainer.base.database import Database
from ..backend import paths
from .asking import running_user

MAX_NODES = 500
"""Nodes that are remembered, those that showed something most recently."""

COMPARISON = "wantune_compare"
"""The key, in a node's `ui` output, of what the page's player shows (web/compare/video_compare.js)."""

_TABLE = """CREATE TABLE IF NOT EXISTS shown (
    turn INTEGER PRIMARY KEY, node TEXT, kind TEXT, data TEXT, UNIQUE (node, kind))"""
"""`turn` grows with each row that is written, so it orders the rows by age."""

_FORGET = """DELETE FROM shown WHERE node NOT IN (
    SELECT node FROM shown GROUP BY node ORDER BY max(turn) DESC LIMIT ?)"""


def key_of(hidden) -> tuple[str, str]:
    """(workflow, node) as the page knows them; the workflow is "" for a graph that was queued without a page.

    The id of a node within subgraphs is the path to it ("5:12") in ComfyUI, and its last part in the page.
    """
    extra = getattr(hidden, "extra_pnginfo", None)
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    workflow_id = workflow.get("id") if isinstance(workflow, dict) else None
    node = getattr(hidden, "unique_id", None)
    return str(workflow_id or ""), str(node or "").rsplit(":", 1)[-1]


def remember(hidden, kind: str, data: object) -> None:
    """Keep data, which must fit JSON, that the node with these hidden inputs shows; where writing fails, forget it."""
    workflow, node = key_of(hidden)
    if not workflow:
        return
    row = _name(running_user(), workflow, node), kind, json.dumps(data)
    _database().write(("INSERT OR REPLACE INTO shown (node, kind, data) VALUES (?, ?, ?)", [row]),
                      (_FORGET, [(MAX_NODES,)]))


def remember_runs(hidden, run: str, low: str = "") -> None:
    """Keep which run Train Wan LoRA shows, and of a pair also that of the low-noise expert."""
    remember(hidden, "run", run)
    remember(hidden, "run_low", low)


def recall(user: str, workflow: str, node: str) -> dict[str, object]:
    """What this node of a user's workflow showed last, by kind."""
    database, found = _database(), {}
    for name in (_name(None, workflow, node), _name(user, workflow, node)):
        for kind, data in database.rows("SELECT kind, data FROM shown WHERE node = ?", name):
            with suppress(TypeError, ValueError):  # damage that SQLite does not notice
                found[kind] = json.loads(data)
    database.close()
    return found


def video_output(hidden, video: Path, data: dict, *outputs) -> io.NodeOutput:
    """A saved video as a node's output, shown by our player in the page, or by ComfyUI's where our scripts are missing.

    Args:
        video: lies in ComfyUI's output folder.
        data: what our player shows, see web/compare/video_player.js.
        outputs: of the node, after the video.
    """
    remember(hidden, "compare", data)
    return io.NodeOutput(InputImpl.VideoFromFile(str(video)), *outputs,
                         ui={**ui.PreviewVideo([paths.saved_result(video)]).as_dict(), COMPARISON: [data]})


def _name(user: str | None, workflow: str, node: str) -> str:
    return json.dumps([user if args.multi_user else None, workflow, node])


def _database() -> Database:
    database = Database(paths.shown_file(), _TABLE)
    database.take_over("INSERT OR IGNORE INTO shown (node, kind, data) VALUES (?, ?, ?)", _rows_of)
    return database


def _rows_of(content: object) -> Iterator[tuple]:
    """Rows of the JSON file that earlier versions wrote: {node: {kind: data}}, the newest last."""
    for name, entry in content.items() if isinstance(content, dict) else ():
        for kind, data in entry.items() if isinstance(entry, dict) else ():
            yield name, kind, json.dumps(data)
