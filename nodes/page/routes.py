"""Registers our HTTP routes on ComfyUI's server: those of `datasets` and `runs`, translations of what the server says,
and the English help texts."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from server import PromptServer

from . import datasets, runs
from .asking import Asked, Door

PACK = Path(__file__).absolute().parents[2]


def register() -> None:
    """Add our routes; called once, before the server starts. Does nothing where ComfyUI is used without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    door = Door(server)
    runs.register(door)
    datasets.register(door)
    door.get("/wantune/sentences/{language}", _sentences)
    server.routes.get(f"/extensions/{PACK.name}/docs/{{node}}/en.md")(_english_help)


def _sentences(asked: Asked) -> dict | Path:
    """{template: translation} of what the server says, for a language such as zh or zh-TW; {} where there is none."""
    languages = {path.parent.name: path for path in (PACK / "locales").glob("*/sentences.json")}
    language = asked.path["language"]
    return languages.get(language) or languages.get(language.partition("-")[0]) or {}


async def _english_help(request: web.Request) -> web.StreamResponse:
    """The page requests <node>/<language>.md first; English is in <node>.md, the page's fallback for all languages."""
    path = PACK / "web" / "docs" / f"{request.match_info['node']}.md"
    if path.parent != PACK / "web" / "docs" or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path)
