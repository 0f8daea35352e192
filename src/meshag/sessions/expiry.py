"""Sessions that expire by themselves: who they were, for whoever takes down what is left of them.

expiring      sorted set: ids by the time at which they expire if nobody uses them any more
remains:<id>  JSON: API key, transport, room; outlives the session by a day
"""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from valkey.asyncio import Valkey

from meshag import clock
from meshag.ids import SessionId, parse_session_id
from meshag.sessions.config import SessionRequest

_EXPIRING = "expiring"

REMAINS_S = 86_400
"""What is left of an expired session is known for so long."""

MOST = 100
"""Sessions looked at in one go."""


class Remains(msgspec.Struct, frozen=True):
    """What is known of a session that has expired."""

    key: str = ""
    """The API key that it belonged to."""
    transport: dict[str, Any] = {}
    """`config.connectors.transport` of its request; empty: not known any more."""
    room: dict[str, Any] = {}
    """Where caller and agent met; empty: there is nothing to take down."""

    @property
    def request(self) -> SessionRequest:
        """As much of its request as is needed to find its transport."""
        told = {"config": {"connectors": {"transport": self.transport}}} if self.transport else {}
        return SessionRequest.model_validate(told)


_decoder = msgspec.json.Decoder(Remains)


def remains_of(key: str, request: SessionRequest, room: dict[str, Any]) -> bytes:
    """What to store of a session that is there."""
    transport = request.config.connectors.transport.model_dump(by_alias=True, mode="json", exclude_unset=True)
    return msgspec.json.encode(Remains(key, transport, room))


class Expiry:
    """The sessions' expiry, as one process sees it. Every call may raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call

    async def put(self, session: SessionId, remains: bytes, ttl_s: int) -> None:
        """A session is there for so long."""
        pipe = self._client.pipeline(transaction=True)
        pipe.set(_remains(session), remains, ex=ttl_s + REMAINS_S)
        pipe.zadd(_EXPIRING, {session: clock.wall_s() + ttl_s})
        await self._call(pipe.execute())

    async def change(self, session: SessionId, remains: bytes) -> None:
        """Something of it has changed. Does nothing when it is gone."""
        await self._call(self._client.set(_remains(session), remains, xx=True, keepttl=True))

    def touch(self, pipe: Any, session: SessionId, ttl_s: int) -> None:
        """It is there for longer: on `pipe`."""
        pipe.expire(_remains(session), ttl_s + REMAINS_S)
        pipe.zadd(_EXPIRING, {session: clock.wall_s() + ttl_s}, xx=True)

    def forget(self, pipe: Any, session: SessionId) -> None:
        """It was ended, or what was left of it is taken down: on `pipe`."""
        pipe.zrem(_EXPIRING, session)
        pipe.delete(_remains(session))

    async def expired(self) -> list[tuple[SessionId, Remains]]:
        """Sessions that have expired and were not buried yet, at most a hundred."""
        members = await self._call(self._client.zrangebyscore(_EXPIRING, "-inf", clock.wall_s(), 0, MOST))
        found: list[tuple[SessionId, Remains]] = []
        for member in members:
            session = parse_session_id(member)
            if session is None:
                await self._call(self._client.zrem(_EXPIRING, member))
                continue
            pipe = self._client.pipeline(transaction=True)
            pipe.ttl(f"session:{session}:config")
            pipe.exists(f"ended:{session}")
            pipe.get(_remains(session))
            left_s, ended, stored = await self._call(pipe.execute())
            if left_s >= 0:  # it lives longer than was noted, or another machine's clock is ahead
                await self._call(self._client.zadd(_EXPIRING, {session: clock.wall_s() + left_s + 1}, xx=True))
            elif ended:
                await self.bury(session)
            else:
                found.append((session, _decoder.decode(stored) if stored else Remains()))
        return found

    async def bury(self, session: SessionId) -> None:
        """What was left of it is taken down."""
        pipe = self._client.pipeline(transaction=True)
        self.forget(pipe, session)
        await self._call(pipe.execute())


def _remains(session: SessionId) -> str:
    return f"remains:{session}"
