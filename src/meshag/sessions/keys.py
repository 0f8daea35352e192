"""API keys in Valkey: who may use the API, what for, and how much of it.

    apikey:<id>       hash: name, digest, scope, session_quota, rate_per_s, created_at_s
    apikeys           sorted set: ids by the time at which they were made
    apikey:<id>:rate  until when the key's requests are spent, microseconds of Valkey's clock

Of a key's secret only the SHA-256 is stored. That is enough: a secret is 256 random bits, so there is nothing to guess
that a slow hash would make slower.
"""

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Literal, get_args

import msgspec
from valkey.asyncio import Valkey

from meshag import clock
from meshag.errors import AuthError, StoreError
from meshag.ids import KeyId, api_key, new_api_key, parse_api_key

Scope = Literal["read", "write", "admin"]
"""Each may do what the one before it may."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

CACHE_S = 5.0
"""A process believes what it has read of a key for so long: a revocation has reached every service after it."""

STALE_S = 600.0
"""While Valkey does not answer, it believes it for so long."""

PAUSE_S = 1.0
"""After Valkey has not answered, it is not asked again about a key that is known, nor about its rate, for so long."""

MOST_CACHED = 4096

NOBODY = hashlib.sha256(b"").hexdigest()
"""The digest that a key is compared with when there is none of its id: that takes as long."""

_INDEX = "apikeys"

_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local step, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local spent = tonumber(redis.call('GET', KEYS[1]) or 0)
if spent < now then spent = now end
local wait = math.ceil(spent + step - burst - now)
if wait > 0 then return wait end
redis.call('SET', KEYS[1], string.format('%.0f', spent + step), 'PX', math.ceil((spent + step - now) / 1000))
return 0
"""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as it is stored: all of it but the secret."""

    id: KeyId
    name: str
    """For people."""
    digest: str
    """SHA-256 of the secret, hexadecimal."""
    scope: Scope
    session_quota: int
    """Sessions at the same time; 0: any number."""
    rate_per_s: int
    """Requests a second over the whole fleet, a second's worth at once; 0: any number."""
    created_at_s: float
    """Unix time, seconds."""

    def may(self, scope: Scope) -> bool:
        """Whether it may do what needs `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Keys:
    """The API keys, as one process sees them. Every call may raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call
        self._take = client.register_script(_TAKE)
        self._cache: OrderedDict[KeyId, tuple[ApiKey, float]] = OrderedDict()
        self._pause_until_s = 0.0

    # -- what a service asks ------------------------------------------------------------------------------------------

    async def verify(self, text: str) -> ApiKey:
        """The key that `text` is. Raises AuthError for what is none, in the same words whatever is wrong with it."""
        parsed = parse_api_key(text)
        key = await self.find(parsed[0]) if parsed else None
        right = hmac.compare_digest(_digest(parsed[1] if parsed else ""), key.digest if key else NOBODY)
        if key is None or not right:
            raise AuthError("the API key is not valid: it is mistyped, or was revoked", code="key_invalid")
        return key

    async def find(self, key: KeyId) -> ApiKey | None:
        """The key as it stands, at most `CACHE_S` old, or `STALE_S` while Valkey does not answer."""
        known, read_s = self._cache.get(key, (None, 0.0))
        now_s = clock.monotonic_s()
        usable = known is not None and now_s - read_s < STALE_S
        if usable and (now_s - read_s < CACHE_S or now_s < self._pause_until_s):
            self._cache.move_to_end(key)
            return known
        try:
            stored = await self._call(self._client.hgetall(_key(key)))
        except StoreError:
            if not usable:
                raise
            self._pause_until_s = clock.monotonic_s() + PAUSE_S
            return known
        found = _read(key, stored)
        if found is None:
            self._cache.pop(key, None)
            return None
        self._cache[key] = (found, now_s)
        self._cache.move_to_end(key)
        if len(self._cache) > MOST_CACHED:
            self._cache.popitem(last=False)
        return found

    def knows(self, key: KeyId) -> bool:
        """Whether this process has read of the key lately: what follows needs no look into Valkey for a stranger."""
        return key in self._cache

    async def wait_s(self, key: ApiKey) -> float:
        """Spend one of the key's requests. More than 0: it has none left, and has one again after so many seconds."""
        if not key.rate_per_s:
            return 0.0
        if clock.monotonic_s() < self._pause_until_s:
            raise StoreError("Valkey does not answer")
        step_us = 1_000_000 / key.rate_per_s
        try:
            wait_us = await self._call(self._take(keys=[f"{_key(key.id)}:rate"], args=[step_us, 1_000_000]))
        except StoreError:
            self._pause_until_s = clock.monotonic_s() + PAUSE_S
            raise
        return int(wait_us) / 1e6

    async def any(self) -> bool:
        """Whether there is a key at all."""
        return bool(await self._call(self._client.exists(_INDEX)))

    # -- what an operator does ----------------------------------------------------------------------------------------

    async def create(self, name: str, scope: Scope, *, session_quota: int, rate_per_s: int) -> tuple[ApiKey, str]:
        """Make a key. Returns it, and the text that its owner sends: nobody can find that out again."""
        key, secret = new_api_key()
        made = ApiKey(
            id=key,
            name=name,
            digest=_digest(secret),
            scope=scope,
            session_quota=session_quota,
            rate_per_s=rate_per_s,
            created_at_s=clock.wall_s(),
        )
        fields = {field: value for field, value in msgspec.structs.asdict(made).items() if field != "id"}
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(_key(key), mapping=fields)
        pipe.zadd(_INDEX, {key: made.created_at_s})
        await self._call(pipe.execute())
        return made, api_key(key, secret)

    async def all(self) -> list[ApiKey]:
        """Every key, the oldest first."""
        ids = [KeyId(key) for key in await self._call(self._client.zrange(_INDEX, 0, -1))]
        pipe = self._client.pipeline(transaction=False)
        for key in ids:
            pipe.hgetall(_key(key))
        stored = await self._call(pipe.execute()) if ids else []
        return [found for key, fields in zip(ids, stored, strict=True) if (found := _read(key, fields))]

    async def revoke(self, key: KeyId) -> bool:
        """Forget a key: nobody takes it any more after `CACHE_S`. Its sessions live on. False: there was none."""
        self._cache.pop(key, None)
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(_key(key))
        pipe.zrem(_INDEX, key)
        return bool((await self._call(pipe.execute()))[0])


def whole_s(wait_s: float) -> int:
    """A wait as `Retry-After` says it: whole seconds, at least one."""
    return max(1, math.ceil(wait_s))


def _key(key: KeyId) -> str:
    return f"apikey:{key}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(key: KeyId, stored: dict[str, str]) -> ApiKey | None:
    """What is stored of a key; None when there is nothing, or nothing that could be trusted."""
    try:
        return msgspec.convert({**stored, "id": key}, ApiKey, strict=False)
    except msgspec.ValidationError:
        return None
