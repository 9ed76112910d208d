"""What all routes share: checks who sends a request, parses it, calls the route's handler, and sends the answer.

A handler is a plain function from `Asked` to a dict (answered as JSON), a `Bytes` or the Path of a file. A UserError
that it raises is answered as {"error": sentence}. Handlers run on threads of their own with a low priority, so that the
server is not blocked and training loses as little time as possible; for the same reason identical requests that wait
in the queue share one answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from comfy.cli_args import args
from server import PromptServer

from ...trainer.base.errors import UserError
from ...trainer.base.threads import DaemonPool

logger = logging.getLogger("wantune")

MAX_BODY = 64 * 1024
"""Bytes of a request; a caption is the longest that is sent."""

MAX_WAITING = 256
"""Requests in work and in the queue; further ones get status 503."""

MAX_CLIENTS = 1000
"""Open pages (client ids) whose user is remembered."""

NICE = 10
"""Added to the niceness of our threads, on Linux, where each thread has its own."""


class NotFound(UserError):
    """There is no such thing; answered as 404."""


class Forbidden(UserError):
    """It lies outside of the folders that the page may read; answered as 403."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has passed the checks."""

    user: str
    """ComfyUI's user; "default" unless it runs with --multi-user."""
    query: Mapping[str, str]
    path: Mapping[str, str]
    """The variable parts of the address."""
    body: Mapping = field(default_factory=dict)

    def text(self, name: str, default: str | None = None) -> str:
        """A string from the body, else from the query.

        Raises:
            UserError: it is missing, or something else.
        """
        value = self.body.get(name, self.query.get(name, default))
        if not isinstance(value, str):
            raise UserError(f"{name} is missing or not a text; send it as a text.")
        return value

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number from the query, clamped to least..most.

        Raises:
            UserError: it is something else.
        """
        try:
            return min(most, max(least, int(self.query.get(name, default))))
        except ValueError:
            raise UserError(f"{name} is {self.query[name]!r}; give a whole number.") from None


@dataclass(frozen=True, slots=True)
class Bytes:
    """An answer as bytes, with its headers."""

    content: bytes
    content_type: str
    max_age: int = 0
    """Seconds for which the browser may keep it."""
    status: int = 200


Handler = Callable[[Asked], "dict | Bytes | Path"]


class Door:
    """Adds routes to ComfyUI's server.

    All `quick` handlers run on one thread, all others, which may read many files, on another.
    """

    def __init__(self, server: PromptServer) -> None:
        self._server = server
        self._threads = {quick: DaemonPool(1, f"wantune-{'quick' if quick else 'slow'}", _step_back)
                         for quick in (True, False)}
        self._num_waiting = 0
        self._turns: dict[tuple, asyncio.Future] = {}
        """Requests in the queue, by what they ask. They leave it when their handler starts, so that a later identical
        request is answered anew."""
        self._lock = threading.Lock()

    def get(self, path: str, handler: Handler, quick: bool = True) -> None:
        """Answer GET."""
        self._server.routes.get(path)(self._answering(handler, quick, changes=False))

    def post(self, path: str, handler: Handler, quick: bool = True) -> None:
        """Answer POST of JSON, from pages of this server only (same origin)."""
        self._server.routes.post(path)(self._answering(handler, quick, changes=True))

    def _answering(self, handler: Handler, quick: bool, changes: bool) -> Callable:
        async def answer(request: web.Request) -> web.StreamResponse:
            if self._num_waiting >= MAX_WAITING:
                return _response(_error(503, "Too many requests at once; try again in a moment."))
            self._num_waiting += 1
            try:
                asked = await self._asked(request, changes)
                # shielded: a page that disconnects must not cancel the answer of others that wait for it
                return _response(await asyncio.shield(self._turn(handler, quick, changes, asked)))
            except _Refused as refused:
                return _response(_error(refused.status, str(refused)))
            finally:
                self._num_waiting -= 1

        return answer

    def _turn(self, handler: Handler, quick: bool, changes: bool, asked: Asked) -> asyncio.Future:
        def work() -> Bytes | Path:
            with self._lock:
                self._turns.pop(question, None)
            return _answer(handler, asked)

        question = (object() if changes else handler, asked.user, *asked.query.items(), *asked.path.items())
        with self._lock:
            if question not in self._turns:
                self._turns[question] = asyncio.get_running_loop().run_in_executor(self._threads[quick], work)
            return self._turns[question]

    async def _asked(self, request: web.Request, changes: bool) -> Asked:
        if not _is_same_origin(request):
            raise _Refused(403, "Only ComfyUI's own page may ask this.")
        try:
            user = self._server.user_manager.get_request_user_id(request)
        except KeyError:
            raise _Refused(401, "ComfyUI does not know this user; choose one on its page.") from None
        _remember(request.headers.get("WanTune-Client", ""), user)
        body = await _body(request) if changes else {}
        return Asked(user, dict(request.query), dict(request.match_info), body)


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


_clients: dict[str, str] = {}
"""ComfyUI's user by client id, the last to ask at the end: ComfyUI tells the client of a prompt, not its user."""


def _remember(client_id: str, user: str) -> None:
    _clients.pop(client_id, None)
    _clients[client_id] = user
    if len(_clients) > MAX_CLIENTS:
        del _clients[next(iter(_clients))]


def user_of(client_id: str | None) -> str | None:
    """ComfyUI's user behind a client id, the id of a page's connection; None where that is not known."""
    return _clients.get(client_id or "")


def running_user() -> str | None:
    """The user who queued the prompt that ComfyUI runs; None where no page is known to have queued it."""
    return user_of(getattr(getattr(PromptServer, "instance", None), "client_id", None))


def pages_of(user: str | None) -> list[str | None]:
    """Client ids to send messages about a user's run to; [None], which is every page, but with --multi-user."""
    if not args.multi_user or user is None:
        return [None]
    return [client for client in list(PromptServer.instance.sockets) if user_of(client) == user]


def is_theirs(owner: str | None, user: str) -> bool:
    """Whether `user` may see and change what `owner`'s graph made; all may if the owner is unknown or "default"."""
    return not args.multi_user or owner in (None, "default", user)


def _is_same_origin(request: web.Request) -> bool:
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    # behind a reverse proxy X-Forwarded-Host is the page's host; a foreign page cannot set it without CORS
    own = (request.headers.get("X-Forwarded-Host"), request.headers.get("Host"))
    return urlsplit(origin).netloc.lower() in [host.strip().lower() for host in own if host]


async def _body(request: web.Request) -> dict:
    if request.content_type != "application/json":
        raise _Refused(415, "Send JSON (Content-Type: application/json).")
    content = b""
    too_large = _Refused(413, f"That is more than {MAX_BODY} bytes; send less.")
    if (request.content_length or 0) > MAX_BODY:
        raise too_large
    async for part in request.content.iter_any():
        content += part
        if len(content) > MAX_BODY:
            raise too_large
    try:
        body = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise _Refused(400, "That is not JSON.") from None
    if not isinstance(body, dict):
        raise _Refused(400, "Send a JSON object.")
    return body


def _answer(handler: Handler, asked: Asked) -> Bytes | Path:
    try:
        answered = handler(asked)
    except UserError as error:
        return _error({NotFound: 404, Forbidden: 403}.get(type(error), 400), str(error))
    except OSError as error:
        return _error(500, f"The file system says: {error.strerror or error}.")
    return _json(answered) if isinstance(answered, dict) else answered


def _json(content: dict, status: int = 200) -> Bytes:
    return Bytes(json.dumps(content).encode(), "application/json", status=status)


def _error(status: int, sentence: str) -> Bytes:
    return _json({"error": sentence}, status)


def _response(answered: Bytes | Path) -> web.StreamResponse:
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    if isinstance(answered, Path):
        return web.FileResponse(answered, headers=headers)
    if answered.max_age:
        headers["Cache-Control"] = f"private, max-age={answered.max_age}"
    return web.Response(body=answered.content, status=answered.status, content_type=answered.content_type,
                        headers=headers)


def _step_back() -> None:
    """Lower the priority of this thread, so that training has the CPU first."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError as error:
            logger.debug("The page's threads keep their priority: %s", error)
