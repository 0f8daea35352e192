"""Watching sessions over a WebSocket: `GET /ws`. See docs/events.md."""

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from meshag import clock
from meshag.api import access
from meshag.api.feed import Feed, Watcher
from meshag.api.service import WORKER
from meshag.errors import ConfigError, MeshError, OverloadError
from meshag.ids import KeyId, SessionId, parse_session_id
from meshag.sessions.events import EventType

log = structlog.get_logger("meshag.api")

FEED = web.AppKey("feed", Feed)

MOST_WATCHERS = 500
"""Connections to one worker."""

MOST_SESSIONS = 100
"""Sessions that a watcher may name."""

MESSAGE_BYTES = 16 * 1024
"""A watcher's message is shorter than this."""

PING_S = 15.0
"""A watcher is told so often that the connection lives, and how far it has come."""

STUCK_S = 10.0
"""A watcher that takes nothing for so long is cut off."""

CLOSE_S = 2.0

PACE_S = 0.02
"""A watcher's messages are read no faster than one in this time."""

TYPES: tuple[str, ...] = get_args(EventType)


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/ws", watch)]


class _Said(msgspec.Struct):
    """A watcher's message."""

    type: str
    types: list[str] | None = None
    sessions: list[str] | None = None


@access.read
async def watch(request: web.Request) -> web.StreamResponse:
    """Watch over a WebSocket: `?after=<id>&types=a,b&sessions=x,y`."""
    feed = request.app[FEED]
    if len(feed.open) >= MOST_WATCHERS:
        raise OverloadError("this transport worker has all the watchers that it takes")
    after = _number(request.query.get("after"))
    types, sessions = (_listed(request.query.get(name, "")) for name in ("types", "sessions"))
    wanted = _types(types), _sessions(sessions)
    connection = _Connection(request, feed)
    connection.watcher.types, connection.watcher.sessions = wanted
    connection.watcher.position = feed.last if after is None else after
    await connection.run()
    return connection.socket


class _Connection:
    """One watcher's WebSocket."""

    def __init__(self, request: web.Request, feed: Feed) -> None:
        self._request = request
        self._feed = feed
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self.watcher = Watcher(access.limited_to(request), self._wake.set, self._overrun)
        self.socket = web.WebSocketResponse(
            protocols=(access.SUBPROTOCOL,),
            heartbeat=2 * PING_S,
            max_msg_size=MESSAGE_BYTES,
            timeout=CLOSE_S,
            writer_limit=16 * 1024,
        )

    async def run(self) -> None:
        """Until the watcher goes, or is closed."""
        await self.socket.prepare(self._request)
        self._feed.open.add(self._close_for_now)
        self._say({"type": "hello", **self._filter(), "last_id": self.watcher.position})
        work = [asyncio.create_task(part) for part in (self._send(), self._join(), self._ping())]
        try:
            async for message in self.socket:
                if message.type is WSMsgType.TEXT:
                    self._on_text(message.data)
                await asyncio.sleep(PACE_S)
        except ConnectionError:
            pass  # gone without a word
        finally:
            self._feed.open.discard(self._close_for_now)
            self._feed.leave(self.watcher)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self._closing is not None:
                await asyncio.wait([self._closing])

    # -- to the watcher -----------------------------------------------------------------------------------------------

    def _say(self, message: dict[str, Any]) -> None:
        self.watcher.put(msgspec.json.encode(message).decode())

    def _filter(self) -> dict[str, Any]:
        return {"types": sorted(self.watcher.types), "sessions": sorted(self.watcher.sessions)}

    def _lost(self, first: int) -> None:
        self._say({"type": "events_lost", "after": self.watcher.position, "first_id": first, "last_id": first - 1})

    async def _join(self) -> None:
        try:
            await self._feed.join(self.watcher, self._lost, self._all_taken)
        except MeshError as error:
            self._close(WSCloseCode.TRY_AGAIN_LATER, error.code)
        except Exception as error:
            log.error("watch_failed", error=type(error).__name__, exc_info=error)
            self._close(WSCloseCode.INTERNAL_ERROR, "internal")

    async def _all_taken(self) -> None:
        while self.watcher.waiting:
            self._taken.clear()
            await self._taken.wait()

    async def _send(self) -> None:
        waiting = self.watcher.waiting
        try:
            while True:
                self._wake.clear()
                while waiting:
                    async with asyncio.timeout(STUCK_S):
                        await self.socket.send_str(waiting.popleft())
                self._taken.set()
                await self._wake.wait()
        except TimeoutError:
            self._abort()
        except (ConnectionError, RuntimeError):
            pass  # it has gone; `run` notices

    async def _ping(self) -> None:
        key = access.key_of(self._request)
        keys = self._request.app[WORKER].store.keys
        while True:
            await asyncio.sleep(PING_S)
            try:
                if key and await keys.find(KeyId(key)) is None:
                    self._close(WSCloseCode.POLICY_VIOLATION, "the API key was revoked")
            except MeshError:
                pass  # Valkey is away: it is asked again
            self._say({"type": "ping", "last_id": self.watcher.position, "t_ms": clock.wall_ns() // clock.MS})

    # -- from the watcher ---------------------------------------------------------------------------------------------

    def _on_text(self, text: str) -> None:
        try:
            said = msgspec.json.decode(text, type=_Said)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._refuse("message_invalid", 'a JSON object with a "type" is needed, for example {"type": "ping"}')
            return
        kind = said.type
        if kind == "ping":
            self._say({"type": "pong", "last_id": self.watcher.position, "t_ms": clock.wall_ns() // clock.MS})
        elif kind == "subscribe":
            try:
                wanted = _types(said.types or []), _sessions(said.sessions or [])
            except ConfigError as error:
                self._refuse(error.code, f"{error}: {error.fix}")
                return
            self.watcher.types, self.watcher.sessions = wanted
            self._say({"type": "subscribed", **self._filter(), "last_id": self.watcher.position})
        elif kind != "pong":
            self._refuse("message_unknown", "type is one of subscribe, ping, pong")

    def _refuse(self, code: str, message: str) -> None:
        self._say({"type": "refused", "code": code, "message": message})

    # -- the end ------------------------------------------------------------------------------------------------------

    def _overrun(self) -> None:
        self._close(WSCloseCode.TRY_AGAIN_LATER, "too slow: come again with ?after= and the last id that you have")

    def _close_for_now(self, reason: str) -> None:
        self._close(WSCloseCode.TRY_AGAIN_LATER, reason)

    def _close(self, code: int, reason: str) -> None:
        """Soon, once. What waits is forgotten: it is in the stream."""
        if self._closing is None:
            self._feed.leave(self.watcher)
            self.watcher.waiting.clear()
            self._closing = asyncio.get_running_loop().create_task(self._end(code, reason))

    async def _end(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(STUCK_S):
                await self.socket.close(code=code, message=reason.encode()[:120])
        except (TimeoutError, ConnectionError, RuntimeError):
            self._abort()

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError("after is not the id of an event", path="after", fix="for example ?after=1204")
    return int(text)


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _types(names: Sequence[str]) -> frozenset[str]:
    """Raises ConfigError for a type that does not exist."""
    if unknown := sorted(set(names) - set(TYPES)):
        raise ConfigError(f"there are no events '{unknown[0][:64]}'", path="types", fix=f"some of {', '.join(TYPES)}")
    return frozenset(names)


def _sessions(texts: Sequence[str]) -> frozenset[SessionId]:
    """Raises ConfigError for what is no id, and for too many."""
    found = frozenset(filter(None, map(parse_session_id, texts)))
    if len(found) != len(set(texts)) or len(found) > MOST_SESSIONS:
        raise ConfigError("sessions are not ids", path="sessions", fix=f"up to {MOST_SESSIONS} session ids")
    return found
