"""Sessions by their rooms, over HTTP, on the transport service.

POST /sessions    make one where a provider's callers meet
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from meshag.api import access
from meshag.api.access import key_of
from meshag.api.idempotency import once
from meshag.api.lifecycle import Begun, Wish, begin
from meshag.api.tokens import renewed
from meshag.audio import RATES_HZ
from meshag.ids import SessionId
from meshag.sessions.problems import ConfigProblems, Problem
from meshag.sessions.requests import RoomRequest, parse


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.post("/sessions", create)]


@access.write
async def create(request: web.Request) -> web.Response:
    """Make a session and the room where it is joined."""
    body = await request.read()

    async def make() -> dict[str, Any]:
        asked = await asyncio.to_thread(parse, RoomRequest, body)
        wish = Wish(
            key_of(request),
            room=asked.room_config.model_dump(exclude_unset=True),
            participant=asked.participant_config.model_dump(by_alias=True, exclude_none=True, exclude_unset=True),
        )
        try:
            return _told(await begin(request, asked.session, wish))
        except ConfigProblems as error:
            raise ConfigProblems([_here(problem) for problem in error.problems]) from None

    async def again(made: dict[str, Any]) -> dict[str, Any]:
        token = await renewed(request, SessionId(made["session_id"]), made["meeting_token"])
        return made | {"meeting_token": token}

    return await once(request, make, again)


def _told(begun: Begun) -> dict[str, Any]:
    record, room = begun.record, begun.invitation.room
    expires_at_s = room.get("expires_at_s", record.created_at_s + record.ttl_s)
    return {
        "session_id": record.id,
        "room_url": begun.invitation.room_url,
        "room_name": room.get("name", record.id),
        "meeting_token": begun.invitation.token,
        "expires_at": rfc3339(expires_at_s),
        "provider_metadata": {"provider": begun.transport, **(_place(room) if room else _SOCKET)},
    }


_SOCKET: dict[str, Any] = {
    "protocol": "websocket",
    "encoding": "pcm_s16le",
    "channels": 1,
    "rates_hz": list(RATES_HZ),
    "rate_hz": 16_000,
    "out_rate_hz": 24_000,
}
"""What a caller over a WebSocket has to know: docs/websocket.md."""


def _place(room: dict[str, Any]) -> dict[str, Any]:
    """What is known of a provider's room beside what the answer says anyway."""
    said = {"name", "url", "expires_at_s"}
    return {name: value for name, value in room.items() if name not in said and isinstance(value, str | int | float)}


def _here(problem: Problem) -> Problem:
    """A problem of the session's configuration where this request has it."""
    transport = "config.connectors.transport"
    if problem.path in (transport, f"{transport}.primary"):
        return replace(problem, path="provider")
    return replace(problem, path=f"options.{problem.path}") if problem.path.startswith("config") else problem


def rfc3339(at_s: float) -> str:
    """A moment as RFC 3339 has it, in UTC, to the second."""
    return datetime.fromtimestamp(int(at_s), UTC).isoformat().replace("+00:00", "Z")
