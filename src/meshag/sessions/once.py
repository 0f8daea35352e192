"""Requests that are done once, however often they are sent: `Idempotency-Key`.

idempotency:<digest>    JSON: the digest of the request, and the answer once there is one
"""

import hashlib
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from valkey.asyncio import Valkey

KEPT_S = 86_400
"""An answer is kept for a day."""

WORKING_S = 60
"""Who has begun a request and says nothing for so long is dead: it may be begun again."""

_SETTLE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class Attempt(msgspec.Struct, frozen=True):
    """A request that somebody has begun, and perhaps answered."""

    request: str
    """The digest of its method, path and body."""

    nonce: str
    """Who has begun it."""

    answer: str = ""
    """JSON; empty while it is being done."""


class Once:
    """The requests in Valkey. Every call may raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call
        self._settle = client.register_script(_SETTLE)

    async def begin(self, place: str, request: str) -> tuple[Attempt, bool]:
        """Begin the request unless that was done: the attempt, and whether it is this one. `place`: see `place_of`."""
        mine = Attempt(request, secrets.token_hex(8))
        while True:
            if await self._call(self._client.set(place, _text(mine), nx=True, ex=WORKING_S)):
                return mine, True
            found = await self._call(self._client.get(place))
            if found is not None:
                return msgspec.json.decode(found, type=Attempt), False

    async def settle(self, place: str, mine: Attempt, answer: str) -> None:
        """Keep the answer to a request that was begun here. Empty: it came to nothing, and may be sent again."""
        settled = _text(msgspec.structs.replace(mine, answer=answer)) if answer else ""
        await self._call(self._settle(keys=[place], args=[_text(mine), settled, KEPT_S]))


def place_of(api_key: str, name: str) -> str:
    """Where an API key's request of this `Idempotency-Key` is kept: nobody else's is found there."""
    return f"idempotency:{digest(api_key.encode(), name.encode())}"


def digest(*parts: bytes) -> str:
    """SHA-256 of the parts, each with its length."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _text(attempt: Attempt) -> str:
    return msgspec.json.encode(attempt).decode()
