"""What this fleet has at vendors, and what vendors tell of it.

meshag:fleet_mark   the word by which the fleet's places are known
place:<id>          JSON: the session that a vendor's room belongs to, and its API key
told:<id>           a vendor has told of this event
attended            sorted set: sessions whose agent is in a room, by the time at which they were made
"""

import base64
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from valkey.asyncio import Valkey

from meshag import clock
from meshag.ids import SessionId

_ATTENDED = "attended"

PLACE_S = 8 * 86_400
"""A room's session is known for longer than any lives: recordings are told of after its end."""

TOLD_S = 86_400
"""An event is known for so long: the same again is not heard."""


class Places:
    """One process's view of them. Every call may raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call
        self._mark = ""

    async def mark(self) -> str:
        """A word that this fleet's services share and no other fleet's: eight of a-z and 2-7."""
        if not self._mark:
            candidate = base64.b32encode(secrets.token_bytes(5)).decode().lower()
            await self._call(self._client.set("meshag:fleet_mark", candidate, nx=True))
            self._mark = str(await self._call(self._client.get("meshag:fleet_mark")))
        return self._mark

    async def remember(self, place: str, session: SessionId, key: str) -> None:
        """Note whose a vendor's room is. `place`: its name or its id there, unique among all vendors' places."""
        value = msgspec.json.encode([session, key]).decode()
        await self._call(self._client.set(f"place:{place}", value, ex=PLACE_S))

    async def whose(self, place: str) -> tuple[SessionId, str] | None:
        """The session, which may have ended by now, and its API key; None for a room of nobody's."""
        found = await self._call(self._client.get(f"place:{place}"))
        if found is None:
            return None
        session, key = msgspec.json.decode(found)
        return SessionId(session), key

    async def attend(self, session: SessionId) -> None:
        """Note that somebody has to be in the session's room."""
        await self._call(self._client.zadd(_ATTENDED, {session: clock.wall_s()}))

    async def attended(self) -> list[tuple[SessionId, float]]:
        """The sessions that need somebody in their rooms, with the time at which they were made. Some may be over."""
        found = await self._call(self._client.zrange(_ATTENDED, 0, -1, withscores=True))
        return [(SessionId(session), made_s) for session, made_s in found]

    async def leave(self, session: SessionId) -> None:
        """It is over."""
        await self._call(self._client.zrem(_ATTENDED, session))

    async def first(self, event: str) -> bool:
        """Whether a vendor's event is new: true for the first who asks, for a day."""
        return bool(await self._call(self._client.set(f"told:{event}", "1", nx=True, ex=TOLD_S)))

    async def untell(self, event: str) -> None:
        """It came to nothing: who is told of it again is the first again."""
        await self._call(self._client.delete(f"told:{event}"))
