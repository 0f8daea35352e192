"""What a stand-in may be told to do wrong."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """What goes wrong from now on, with every request. The default: nothing."""

    status: int = 0
    """Answer every request with this status and the vendor's own error body; a WebSocket's handshake too."""
    retry_after: str = ""
    """The `Retry-After` header beside `status`."""
    code: str = ""
    """The vendor's short error code in that body; empty: the usual one for the status."""
    refuse: bool = False
    """Cut every connection at once, without an answer."""
    mute: bool = False
    """Accept the request (or the WebSocket), say nothing, not even headers."""
    headers_only: bool = False
    """Send the headers of a good answer (or accept the WebSocket and greet), then say nothing more."""
    silent_after: int = -1
    """Say so many items (tokens, interims, pieces of audio) as usual, then nothing, and keep the connection open."""
    drip_s: float = 0.0
    """One byte (HTTP), or one empty or keep-alive message (WebSocket), in so many seconds, for ever."""
    slow_s: float = 0.0
    """Between two items, instead of at once: real items, late."""
    garbage: str = ""
    """Instead of items: `binary`, `html` (200, text/html), `json` (of another shape), `nan`, `types` (wrong types),
    `long_line` (10 MB), `empty`."""
    cut_after: int = -1
    """Break the connection (RST, or a truncated body) after so many items."""
    error_after: int = -1
    """After so many items, the vendor's own error message inside the stream."""
    endless: bool = False
    """Items without end."""
    first_s: float = 0.0
    """Before the first item."""


class Switch:
    """A stand-in's faults, as the test and the outside may change them."""

    def __init__(self) -> None:
        self.now = Faults()

    def set(self, **faults: Any) -> None:
        """Exactly these from now on; none: all is well."""
        self.now = Faults(**faults)

    def routes(self) -> list[web.RouteDef]:
        """`POST /__faults` with the JSON of `Faults`; `{}` heals."""

        async def change(request: web.Request) -> web.Response:
            self.now = msgspec.json.decode(await request.read(), type=Faults)
            return web.json_response(msgspec.to_builtins(self.now))

        return [web.post("/__faults", change)]


class StandIn:
    """A vendor's server on this machine. `async with` it; `url` is its base address (http://127.0.0.1:port)."""

    def __init__(self) -> None:
        self.faults = Switch()
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        """What was received, oldest first: method, path, query, headers, and `body` as parsed; the newest thousand."""
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.BaseTransport] = set()

    def routes(self) -> list[web.RouteDef]:
        """The vendor's routes."""
        raise NotImplementedError

    def received(self, **what: Any) -> None:
        """Note a request."""
        self.requests.append(what)
        del self.requests[:-1000]

    async def start(self, port: int = 0) -> None:
        """Listen."""
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[noting(self._connections)])
        app.add_routes([*self.routes(), *self.faults.routes()])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def cut(self) -> None:
        """Break every connection that is in use, as the death of the server would."""
        for wire in list(self._connections):
            wire.abort()  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> "StandIn":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def noting(connections: set[asyncio.BaseTransport]) -> Middleware:
    """Keeps in `connections` those over which something is being answered."""

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        wire = request.transport
        if wire is None:
            return await handler(request)
        connections.add(wire)
        try:
            return await handler(request)
        finally:
            connections.discard(wire)

    return note


async def forever() -> None:
    """Until the connection is closed under us, or the test ends."""
    await asyncio.sleep(3600)


def hang_up(request: web.Request) -> None:
    """Break the connection without a goodbye."""
    if request.transport is not None:
        request.transport.abort()


def main(make: Callable[[], StandIn]) -> None:
    """Run one as a process: prints its address, ends when its standard input does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port

    async def run() -> None:
        stand_in = make()
        await stand_in.start(port)
        print(stand_in.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await stand_in.stop()

    asyncio.run(run())
