"""What the page asks of us: /wantune/... on ComfyUI's own server."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from . import live


def register() -> None:
    """Add our routes; called once, before the server starts. Does nothing where ComfyUI serves as a library."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post("/wantune/stop")(_stop)


async def _stop(_request: web.Request) -> web.Response:
    """End the present run after its present step, save, and go on in the graph with what was learned."""
    return web.json_response({"stopping": live.ask_to_stop()})
