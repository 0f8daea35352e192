"""Pages of the sessions, newest first. Sessions that are made or ended meanwhile change no later page."""

import base64
import binascii
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from valkey.asyncio import Valkey

from meshag.errors import ConfigError
from meshag.ids import SessionId, parse_session_id

SCANNED = 5_000
"""Sessions looked at for one page: where few have the status that is asked for, a page may hold less than it could."""

Place = tuple[float, str]
"""Where a page ends: when its last session was made, and that session's id."""


class Page(msgspec.Struct, frozen=True):
    """Some sessions, and where the next page begins."""

    ids: list[SessionId]
    next: Place | None
    """None: there are no more."""


class Pages:
    """The indexes in Valkey, as one process sees them. May raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call

    async def read(self, index: str, limit: int, status: str = "", after: Place | None = None) -> Page:
        """A page of an index. Those that have expired are dropped from it on the way.

        `status`: only those that have it. `after`: where the page before it ended.
        """
        found: list[tuple[SessionId, Place]] = []
        place, looked = after, 0
        while len(found) <= limit and looked < SCANNED:
            batch = await self._below(index, place, max(limit + 1, 100))
            if not batch:
                return Page([session for session, _ in found[:limit]], found[limit - 1][1] if found[limit:] else None)
            looked += len(batch)
            place = batch[-1]
            found += await self._there(index, batch, status)
        if len(found) > limit:
            place = found[limit - 1][1]
        return Page([session for session, _ in found[:limit]], place)

    async def _below(self, index: str, place: Place | None, count: int) -> list[Place]:
        """The next sessions after a place. Those that were made at the same moment are in the order of their ids."""
        top: float | str = "+inf" if place is None else place[0]
        start = 0
        while True:
            rows = await self._call(
                self._client.zrevrangebyscore(index, top, "-inf", start=start, num=count, withscores=True)
            )
            below = [(score, member) for member, score in rows if place is None or (score, member) < place]
            if below or len(rows) < count:
                return below
            start += count

    async def _there(self, index: str, batch: list[Place], status: str) -> list[tuple[SessionId, Place]]:
        pipe = self._client.pipeline(transaction=False)
        for _, member in batch:
            pipe.exists(f"session:{member}:config")
            pipe.hget(f"session:{member}:state", "status")
        answers = await self._call(pipe.execute())
        there = list(zip(batch, answers[::2], answers[1::2], strict=True))
        gone = [member for (_, member), exists, _ in there if not exists]
        if gone:
            await self._call(self._client.zrem(index, *gone))
        return [
            (session, place)
            for place, exists, stands in there
            if exists and status in ("", stands) and (session := parse_session_id(place[1]))
        ]


def cursor_of(place: Place) -> str:
    """A place as clients hold it: opaque to them."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(cursor: str) -> Place:
    """The place that a client holds. Raises ConfigError for what never was one."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        score, member = msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True), type=Place)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError):
        member = ""
    if not parse_session_id(member):
        raise ConfigError("cursor is none of ours", path="cursor", fix="send a next_cursor as it was answered")
    return score, member
