"""The live page over HTTP, with server-sent events: the only place that knows Starlette and its friends.

The page may be read by whoever reaches its port, which is on loopback unless told. Names that lead here are checked
(DNS rebinding), and the command route, which is there with a token only, takes what comes from this very page.
"""

import asyncio
import hashlib
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from esper.contracts.errors import BusUnavailableError, ConfigError
from esper.observability.live.feed import Feed, Runs
from esper.observability.live.run import Source
from esper.observability.live.tokens import Token
from esper.observability.live.view import ORDER
from esper.observability.report import render

try:
    import uvicorn
    from sse_starlette.sse import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ConfigError("esper watch needs its web server: pip install 'esper-morphogenetic[run,watch]'.") from error

LOOPBACK = "127.0.0.1"

SHORTEST_WAIT_S = 0.2
"""Between two updates: five a second at most."""

REST = 2.0
"""After an update that took long to work out, so many times as long nothing is done."""

_LOOK_S = 0.25

MOST_BYTES = 64 * 1024
"""Of a command."""


@dataclass(frozen=True)
class Asking:
    """How commands may be sent.

    Args:
        token: which they must come with.
        send: sends one: an action and the fields of its message; gives its id.
    """

    token: Token
    send: Callable[[str, Mapping[str, Any]], str]


_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class NamesChecked:
    """Serves only those who call this server by an address, as localhost, or by the name that it was given.

    Args:
        app: what is served.
        host: the name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and not is_own(Request(scope).headers.get("host", ""), self._host):
            text = "This server is called by another name. Use its address, or start it with --host NAME."
            await PlainTextResponse(text, 400)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_own(header: str, host: str) -> bool:
    """Whether a Host header names an address, localhost or the host: a name of somebody else's may lead here too."""
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() in ("localhost", host.lower())
    return True


def application(runs: Runs, host: str, ending: threading.Event, asking: Asking | None = None) -> ASGIApp:
    """The page, its events, and where commands may be sent their route.

    Args:
        runs: what is shown.
        host: name that the server was given.
        ending: set when the server ends.
        asking: None takes no commands.
    """
    shown = {"may_ask": asking is not None, "title": "Live", "data": {}, "sections": ORDER}
    digest = hashlib.sha256(render("live.html.j2", {**shown, "page": ""}).encode()).hexdigest()[:16]
    page = render("live.html.j2", {**shown, "page": digest})

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    async def tell(request: Request) -> Response:
        events = _events(runs, request.query_params.get("run"), digest, ending)
        return EventSourceResponse(events, ping=10, headers=_HEADERS)

    routes = [Route("/", show), Route("/events", tell)]
    if asking is not None:
        routes.append(Route("/commands", partial(_ask, asking), methods=["POST"]))
    return NamesChecked(Starlette(routes=routes), host)


async def _ask(asking: Asking, request: Request) -> Response:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or not asking.token.is_right(given):
        return _said("The token is wrong: it stands in the file that --token names.", 403)
    if request.headers.get("origin") != f"{request.url.scheme}://{request.headers['host']}":
        return _said("Commands come from the page itself only.", 403)
    try:
        return JSONResponse({"id": await asyncio.to_thread(_send, asking, await _body(request))}, 202)
    except ConfigError as error:
        return _said(str(error), 400)
    except BusUnavailableError as error:
        return _said(str(error), 503)


async def _body(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ConfigError("This command is too long.")
    return body


def _send(asking: Asking, body: bytes) -> str:
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or not isinstance(asked.get("fields"), dict):
        raise ConfigError("A command is a JSON object with 'action' and 'fields'.")
    return asking.send(str(asked.get("action")), asked["fields"])


def _said(text: str, status: int) -> Response:
    return JSONResponse({"said": text}, status, headers=_HEADERS)


async def _events(
    runs: Runs, wanted: str | None, digest: str, ending: threading.Event
) -> AsyncIterator[dict[str, Any]]:
    yield {"event": "page", "data": digest, "retry": 1000}
    feed, clock = Feed(runs, wanted), asyncio.get_running_loop().time
    with ExitStack() as stack:
        while not ending.is_set():
            begun, before = clock(), feed.shown
            message = await asyncio.to_thread(feed.next)
            if feed.shown is not None and feed.shown != before:
                stack.enter_context(runs.read(feed.shown))
            if message is not None:
                name, content = message
                yield {"event": name, "data": json.dumps(content, separators=(",", ":"), allow_nan=False)}
            took = clock() - begun
            until = clock() + max(SHORTEST_WAIT_S - took, REST * took)
            while not ending.is_set() and (left := until - clock()) > 0:
                await asyncio.sleep(min(left, _LOOK_S))


class LiveServer:
    """Serves the live page from a thread of its own.

    Args:
        source: where runs are told.
        port: to listen at; 0 takes a free one.
        host: address to listen at, or a name of this machine.
        asking: how commands may be sent; None takes none.

    Attributes:
        port: at which it listens.

    Raises:
        ConfigError: if the port is taken, or the address is none of this machine.
    """

    def __init__(self, source: Source, port: int, host: str = LOOPBACK, asking: Asking | None = None) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(address[:2], family=family)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigError(f"The page cannot be served at {host}:{port}: {error}. Name another port.") from error
        self.port: int = self._socket.getsockname()[1]
        self._ending = threading.Event()
        app = application(Runs(source), host, self._ending, asking)
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="esper-watch", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._ending.set()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # readers are cut off, and that is meant
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
