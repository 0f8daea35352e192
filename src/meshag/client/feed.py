"""What happens to sessions, as it happens: `GET /ws`, over as many connections as it takes. See docs/events.md."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import aiohttp
import msgspec

from meshag import clock
from meshag.client import calls
from meshag.client.answers import ApiError, Unavailable, read, silent
from meshag.client.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, Server

SILENT_S = 40.0
"""The service says something every 15 s; who is silent for so long has gone."""

CONNECT_S = 10.0


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a session."""

    type: str
    """As in docs/events.md; `events_lost`: some are no longer kept."""

    id: int = 0
    """Counts the events of the whole mesh: resume with `after`. 0 for `events_lost`."""

    session_id: str = ""

    at: str = ""
    """When, RFC 3339, UTC."""

    data: dict[str, Any] = {}
    """What belongs to an event of this type."""


class _Said(msgspec.Struct):
    """Any message of the feed."""

    type: str
    id: int = 0
    last_id: int = 0
    session_id: str = ""
    at: str = ""
    data: dict[str, Any] = {}
    after: int = 0
    first_id: int = 0


async def watch(
    http: aiohttp.ClientSession, server: Server, after: int | None, types: Sequence[str], sessions: Sequence[str]
) -> AsyncGenerator[Event, None]:
    """Events without an end. Raises ApiError when the first connection fails, or a later one for good."""
    place, pause_s, began = after, FIRST_PAUSE_S, False
    while True:
        began_s = clock.monotonic_s()
        try:
            async with await _connected(http, server, calls.watch(place, types, sessions)) as socket:
                began = True
                async for said in _messages(socket):
                    if said.type == "events_lost":
                        yield Event("events_lost", data={"after": said.after, "first_id": said.first_id})
                    elif said.id:
                        yield Event(said.type, said.id, said.session_id, said.at, said.data)
                    place = max(place or 0, said.id, said.last_id)
        except ApiError as error:
            if not (began and error.retryable):
                raise
        if clock.monotonic_s() - began_s > LONGEST_PAUSE_S:
            pause_s = FIRST_PAUSE_S
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _connected(http: aiohttp.ClientSession, server: Server, path: str) -> aiohttp.ClientWebSocketResponse:
    try:
        async with asyncio.timeout(CONNECT_S):
            return await http.ws_connect(server.url + path, headers=server.headers, max_msg_size=0)
    except aiohttp.WSServerHandshakeError as error:
        return await _why(http, server, path, error)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise silent(server.url, error) from None


async def _why(
    http: aiohttp.ClientSession, server: Server, path: str, refused: aiohttp.WSServerHandshakeError
) -> aiohttp.ClientWebSocketResponse:
    """Raises what the service has to say to who may not watch; the WebSocket's own error holds none of it."""
    try:
        limit = aiohttp.ClientTimeout(total=CONNECT_S)
        async with http.get(server.url + path, headers=server.headers, timeout=limit) as answer:
            read(dict, refused.status, dict(answer.headers), await answer.read(), server.url)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise silent(server.url, error) from None
    raise Unavailable(f"{server.url} does not let us watch", status=503)


async def _messages(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[_Said]:
    """What is said until the connection ends, however it does."""
    while True:
        try:
            message = await socket.receive(timeout=SILENT_S)
        except TimeoutError:
            return
        if message.type is not aiohttp.WSMsgType.TEXT:
            return
        try:
            yield msgspec.json.decode(message.data, type=_Said)
        except msgspec.MsgspecError:
            continue  # of a newer version
