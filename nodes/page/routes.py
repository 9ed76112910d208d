"""What the page asks of us: /wantune/... on ComfyUI's own server, theme by theme in the files beside this one."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from server import PromptServer

from . import datasets, runs
from .asking import Door

PACK = Path(__file__).absolute().parents[2]


def register() -> None:
    """Add our routes; called once, before the server starts. Does nothing where ComfyUI serves as a library."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    door = Door(server)
    runs.register(door)
    datasets.register(door)
    server.routes.get(f"/extensions/{PACK.name}/docs/{{node}}/en.md")(_english_help)


async def _english_help(request: web.Request) -> web.StreamResponse:
    """The page asks for a help text by language first; <node>.md is the English one, and that of other languages."""
    path = PACK / "web" / "docs" / f"{request.match_info['node']}.md"
    if path.parent != PACK / "web" / "docs" or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path)
