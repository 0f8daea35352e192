"""Sessions in Valkey: what was asked for, where it stands, what was said, who owns it.

    session:<id>:config         JSON: the request and its version
    session:<id>:state          hash: status, created_at_s, ttl_s, key, room (JSON)
    session:<id>:history        hash: turn number to JSON exchange
    session:<id>:usage          hash: what it has cost, see `usage.py`
    session:<id>:lease:<stage>  "<worker> <epoch>"
    sessions                    sorted set: ids by the time at which they were made
    sessions:<key>              the same, of one API key
    ended:<id>                  it was ended: for ten minutes nobody may put it back; holds its API key's id

Every key of a session has its TTL. A live call never needs Valkey to go on; a new one does.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec
from valkey import exceptions
from valkey.asyncio import Valkey

from meshag import clock
from meshag.errors import LimitError, SessionError, StoreError
from meshag.ids import SessionId, WorkerId
from meshag.observe import metrics
from meshag.sessions.config import SessionRequest
from meshag.sessions.expiry import Expiry, remains_of
from meshag.sessions.keys import Keys
from meshag.sessions.once import Once
from meshag.sessions.pages import Page, Pages, Place
from meshag.sessions.places import Places
from meshag.sessions.tools import STORED
from meshag.sessions.usage import Usage
from meshag.subjects import STAGES, Stage

_FAILURES = (exceptions.ValkeyError, OSError, TimeoutError)

_INDEX = "sessions"

_CLAIM = """
if redis.call('EXISTS', KEYS[2]) == 1 then return '' end
local lease = redis.call('GET', KEYS[1])
local epoch = 0
local holder = ''
if lease then
  holder = string.match(lease, '^(%S*) ')
  epoch = tonumber(string.match(lease, ' (%d+)$'))
end
if epoch > tonumber(ARGV[2]) and holder ~= '' and holder ~= ARGV[1] then return lease end
if epoch < tonumber(ARGV[2]) then epoch = tonumber(ARGV[2]) end
lease = ARGV[1] .. ' ' .. string.format('%d', epoch + 1)
redis.call('SET', KEYS[1], lease, 'EX', ARGV[3])
return lease
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ' ' .. ARGV[2], 'KEEPTTL')
return 1
"""


_CHANGE = """
local stored = redis.call('GET', KEYS[1])
if not stored then return 'gone' end
if cjson.decode(stored).version ~= tonumber(ARGV[1]) then return 'changed' end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 'ok'
"""

_PUT = """
local id, quota = ARGV[1], tonumber(ARGV[2])
local function forget(ids)
  for _, one in ipairs(ids) do
    if redis.call('EXISTS', 'session:' .. one .. ':config') == 0 then redis.call('ZREM', KEYS[4], one) end
  end
end
if KEYS[4] then
  if quota > 0 and redis.call('ZCARD', KEYS[4]) >= quota then
    forget(redis.call('ZRANGE', KEYS[4], 0, -1))
    if redis.call('ZCARD', KEYS[4]) >= quota then return 0 end
  end
  forget(redis.call('ZRANDMEMBER', KEYS[4], 3))
  redis.call('ZADD', KEYS[4], ARGV[3], id)
end
redis.call('ZADD', KEYS[3], ARGV[3], id)
redis.call('SET', KEYS[1], ARGV[5], 'EX', ARGV[4])
redis.call('HSET', KEYS[2], unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
"""
"""Every session looks at three of its key's at random and forgets those that expired: the index stays small."""

_NOTE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
"""

QUOTA_RETRY_S = 10
"""An API key that has all the sessions it may is told to come again so much later, seconds."""

PARTS = ("config", "state", "history", "usage", *(f"lease:{stage}" for stage in STAGES))
"""Of a session's keys."""

ENDED_S = 600
"""An ended session is known as such for this long: an owner who missed its end must not put it back."""


class Lease(msgspec.Struct, frozen=True):
    """Who owns a stage of a session."""

    worker: WorkerId
    epoch: int


class SessionRecord(msgspec.Struct, frozen=True):
    """A session as it is stored."""

    id: SessionId
    version: int
    """Of the configuration: 1, then one more with every change."""
    request: SessionRequest
    status: str = "created"
    """`created`, `live` while a caller is connected, `idle` after, `ended`."""
    created_at_s: float = 0.0
    ttl_s: int = 3600
    key: str = ""
    """The id of the API key that it was made with; empty when none was needed."""
    room: dict[str, Any] = {}
    """Where caller and agent meet, as the transport connector's invitation says; empty for a socket."""


class SessionStore:
    """One process's connection to Valkey. Make it with `SessionStore.connect`. Every call may raise StoreError."""

    def __init__(self, client: Valkey, address: str) -> None:
        self._client = client
        self.address = address
        self._claim = client.register_script(_CLAIM)
        self._change = client.register_script(_CHANGE)
        self._note = client.register_script(_NOTE)
        self._release = client.register_script(_RELEASE)
        self._put = client.register_script(_PUT)
        self.keys = Keys(client, self._call)
        """The API keys, which are in the same Valkey."""
        self._pages = Pages(client, self._call)
        self.usage = Usage(client, self._call)
        """What sessions have cost."""
        self.once = Once(client, self._call)
        """Requests that are not done twice."""
        self.expiry = Expiry(client, self._call)
        self.places = Places(client, self._call)
        """Which sessions have expired, and what is left of them."""

    @classmethod
    async def connect(cls, url: str, *, allow_volatile: bool = False, timeout_ms: int = 5000) -> "SessionStore":
        """Connect, and refuse a server that may lose sessions. Raises StoreError, naming VALKEY_URL."""
        address = url.partition("?")[0].rsplit("@", 1)[-1].removeprefix("valkey://").removeprefix("redis://")
        try:
            client = Valkey.from_url(
                url, decode_responses=True, socket_timeout=2, socket_connect_timeout=2, health_check_interval=15
            )
        except ValueError:  # its text may hold a part of the password
            raise StoreError("VALKEY_URL is no address like valkey://127.0.0.1:6379/0", retryable=False) from None
        store = cls(client, address)
        deadline = clock.monotonic_s() + timeout_ms / 1000
        while True:
            try:
                await _answer(client.ping())
                break
            except _FAILURES as error:
                why = str(error).rstrip(".")
                if isinstance(error, exceptions.AuthenticationError):
                    await store.aclose()
                    raise StoreError(
                        f"Valkey at {address} refuses us: {why}. Set VALKEY_URL with a name and password that it takes"
                    ) from error
                if clock.monotonic_s() > deadline:
                    await store.aclose()
                    raise StoreError(
                        f"Valkey does not answer at {address}: {why}. Start valkey-server, or set VALKEY_URL"
                    ) from error
                await asyncio.sleep(0.1)
        if not allow_volatile:
            try:
                await store.check_safe()
            except StoreError:
                await store.aclose()
                raise
        return store

    async def check_safe(self) -> None:
        """Refuse a server that evicts keys or keeps no append-only file: it would silently lose live sessions."""
        try:
            policy = (await _answer(self._client.config_get("maxmemory-policy")))["maxmemory-policy"]
            append = (await _answer(self._client.config_get("appendonly")))["appendonly"]
        except exceptions.ResponseError as error:
            raise StoreError(
                f"Valkey at {self.address} does not tell its configuration ({error}): allow CONFIG GET to this user, "
                "or set MESHAG_ALLOW_VOLATILE_VALKEY=1 if it is safe"
            ) from error
        except _FAILURES as error:
            raise _unavailable(error) from error
        wrong = []
        if policy != "noeviction":
            wrong.append(f"maxmemory-policy is {policy}, so it may delete live sessions; set it to noeviction")
        if append != "yes":
            wrong.append("appendonly is off, so a restart forgets every session; set it to yes")
        if wrong:
            raise StoreError(
                f"Valkey at {self.address} is not safe for sessions: {'; '.join(wrong)}. "
                "MESHAG_ALLOW_VOLATILE_VALKEY=1 accepts it as it is",
                code="store_unsafe",
                retryable=False,
            )

    async def aclose(self) -> None:
        """Disconnect. Idempotent."""
        await self._client.aclose()

    async def round_trip_ms(self) -> float:
        """Time to the server and back, ms."""
        start = clock.monotonic_ns()
        await self._call(self._client.ping())
        return (clock.monotonic_ns() - start) / clock.MS

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def create(
        self, session: SessionId, request: SessionRequest, ttl_s: int, key: str = "", quota: int = 0
    ) -> SessionRecord:
        """Store a new session. `key`: the id of the API key that it belongs to.

        `quota`: how many sessions that key may have, 0 for any number. Raises LimitError when it has as many.
        """
        record = SessionRecord(session, 1, request, "created", clock.wall_s(), ttl_s, key)
        await self.put(record, quota)
        return record

    async def put(self, record: SessionRecord, quota: int = 0) -> None:
        """Store a session as it is: a new one, or again what a flushed Valkey has forgotten."""
        state: dict[str, str | float] = {
            "status": record.status,
            "created_at_s": record.created_at_s,
            "ttl_s": record.ttl_s,
            "key": record.key,
            "room": msgspec.json.encode(record.room).decode(),
        }
        fields: list[str | float] = [part for field in state.items() for part in field]
        own = [_index(record.key)] if record.key else []
        stored = await self._call(
            self._put(
                keys=[_key(record.id, "config"), _key(record.id, "state"), _INDEX, *own],
                args=[
                    record.id,
                    quota,
                    record.created_at_s,
                    record.ttl_s,
                    _config(record.version, record.request),
                    *fields,
                ],
            )
        )
        if not stored:
            raise LimitError(
                f"this API key may have {quota} sessions at the same time, and has them: end one",
                retry_after_s=QUOTA_RETRY_S,
                code="quota_exceeded",
            )
        await self.expiry.put(record.id, remains_of(record.key, record.request, record.room), record.ttl_s)

    async def key_of(self, session: SessionId) -> str | None:
        """The API key that a session belongs to, or did until it was ended lately. None: there is no such session."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hget(_key(session, "state"), "key")
        pipe.get(_ended(session))
        there, ended = await self._call(pipe.execute())
        found: str | None = ended if there is None else there
        return found

    async def load(self, session: SessionId) -> SessionRecord:
        """A session as it is stored. Raises SessionError when there is none."""
        pipe = self._client.pipeline(transaction=False)
        pipe.get(_key(session, "config"))
        pipe.hgetall(_key(session, "state"))
        config, state = await self._call(pipe.execute())
        if config is None:
            raise no_session(session)
        try:
            stored = msgspec.json.decode(config)
            return SessionRecord(
                session,
                stored["version"],
                SessionRequest.model_validate(stored["request"], context=STORED),
                state.get("status", "created"),
                float(state.get("created_at_s", 0)),
                int(float(state.get("ttl_s", 3600))),
                state.get("key", ""),
                msgspec.json.decode(state.get("room") or "{}"),
            )
        except (ValueError, TypeError, KeyError) as error:  # also msgspec's and pydantic's: both repeat what is stored
            what = f"the session {session} is stored in a form that this version cannot read"
            raise StoreError(f"{what}: {type(error).__name__}", code="session_unreadable", retryable=False) from None

    async def change_config(self, record: SessionRecord, request: SessionRequest) -> SessionRecord:
        """Replace the configuration of a session. Raises SessionError when it has gone meanwhile."""
        changed = msgspec.structs.replace(record, version=record.version + 1, request=request)
        data = _config(changed.version, request)
        done = await self._call(self._change(keys=[_key(record.id, "config")], args=[record.version, data]))
        if done == "gone":
            raise no_session(record.id)
        if done == "changed":
            raise StoreError("the session was changed by somebody else at the same time", code="session_changed")
        return changed

    async def set_room(self, record: SessionRecord, room: dict[str, Any]) -> SessionRecord:
        """Note where the session's caller and agent meet. Does nothing for one that is gone."""
        await self._state(record.id, "room", msgspec.json.encode(room).decode())
        await self.expiry.change(record.id, remains_of(record.key, record.request, room))
        return msgspec.structs.replace(record, room=room)

    async def set_status(self, session: SessionId, status: str) -> None:
        """Note where the session stands. Does nothing for one that is gone."""
        await self._state(session, "status", status)

    async def _state(self, session: SessionId, field: str, value: str) -> None:
        await self._call(self._note(keys=[_key(session, "config"), _key(session, "state")], args=[field, value]))

    async def has_ended(self, session: SessionId) -> bool:
        """Whether a session that is not there was ended, and not forgotten by a flushed Valkey."""
        return bool(await self._call(self._client.exists(_ended(session))))

    async def touch(self, session: SessionId, ttl_s: int) -> bool:
        """Give every key of the session its whole TTL again. False when the session is not there."""
        pipe = self._client.pipeline(transaction=False)
        for part in PARTS:
            pipe.expire(_key(session, part), ttl_s)
        self.expiry.touch(pipe, session, ttl_s)
        return bool((await self._call(pipe.execute()))[0])

    async def extend(self, record: SessionRecord, ttl_s: int) -> SessionRecord:
        """Change how long the session outlives its last sign of life. Raises SessionError when it has gone."""
        if not await self.touch(record.id, ttl_s):
            raise no_session(record.id)
        await self._call(self._client.hset(_key(record.id, "state"), "ttl_s", str(ttl_s)))
        return msgspec.structs.replace(record, ttl_s=ttl_s)

    async def remaining_s(self, session: SessionId) -> int | None:
        """Seconds until the session expires; None when it is not there."""
        left = await self._call(self._client.ttl(_key(session, "config")))
        return None if left < 0 else int(left)

    async def delete(self, session: SessionId) -> bool:
        """Forget a session with everything that belongs to it. False when it was not there."""
        key = await self.key_of(session) or ""
        pipe = self._client.pipeline(transaction=True)
        pipe.exists(_key(session, "config"))
        pipe.delete(*(_key(session, part) for part in PARTS))
        pipe.zrem(_INDEX, session)
        pipe.zrem(_index(key), session)
        pipe.set(_ended(session), key, ex=ENDED_S)
        self.expiry.forget(pipe, session)
        return bool((await self._call(pipe.execute()))[0])

    async def page(self, *, limit: int, key: str = "", status: str = "", after: Place | None = None) -> Page:
        """A page of the sessions, of one API key or of all, newest first. See `Pages.read`."""
        return await self._pages.read(_index(key), limit, status, after)

    # -- history ------------------------------------------------------------------------------------------------------

    async def remember(self, session: SessionId, turn: int, exchange: bytes, ttl_s: int) -> None:
        """Store what was said in a turn. The same turn again replaces it. Does nothing when the session was ended."""
        if await self.has_ended(session):
            return
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(_key(session, "history"), str(turn), exchange.decode())
        pipe.expire(_key(session, "history"), ttl_s)
        await self._call(pipe.execute())

    async def history(self, session: SessionId) -> list[bytes]:
        """What was said, by turn."""
        stored: dict[str, str] = await self._call(self._client.hgetall(_key(session, "history")))
        return [stored[turn].encode() for turn in sorted(stored, key=int)]

    async def turns(self, session: SessionId) -> int:
        """How many turns the history has."""
        return int(await self._call(self._client.hlen(_key(session, "history"))))

    # -- ownership ----------------------------------------------------------------------------------------------------

    async def claim(self, session: SessionId, stage: Stage, worker: WorkerId, known_epoch: int, ttl_s: int) -> Lease:
        """Take the lease unless another holds an epoch above `known_epoch`. Returns it as it stands: ours or not.

        The new epoch is above both what is stored and what the asker knew, so it grows even when Valkey was flushed.
        Who asks does not own the session, whatever is stored: it may have lost it. Raises SessionError for one that was
        ended meanwhile: a lease of it would be left behind.
        """
        keys = [_key(session, f"lease:{stage}"), _ended(session)]
        answer = await self._call(self._claim(keys=keys, args=[worker, known_epoch, ttl_s]))
        if not answer:
            raise no_session(session)
        return _lease(str(answer))

    async def release(self, session: SessionId, stage: Stage, lease: Lease) -> None:
        """Give up a lease that nothing came of. Its epoch stays used. Does nothing when another holds it by now."""
        key = _key(session, f"lease:{stage}")
        await self._call(self._release(keys=[key], args=[lease.worker, lease.epoch]))

    async def lease(self, session: SessionId, stage: Stage) -> Lease | None:
        """Who owns a stage of the session, as stored; the worker is empty when its lease was given up."""
        answer = await self._call(self._client.get(_key(session, f"lease:{stage}")))
        return None if answer is None else _lease(answer)

    async def restore_lease(self, session: SessionId, stage: Stage, lease: Lease, ttl_s: int) -> None:
        """Put back a lease that a flushed Valkey has forgotten."""
        key, value = _key(session, f"lease:{stage}"), f"{lease.worker} {lease.epoch}"
        await self._call(self._client.set(key, value, nx=True, ex=ttl_s))

    # -- the fleet's secret -------------------------------------------------------------------------------------------

    async def shared_secret(self, candidate: str) -> str:
        """The secret that signs callers' tokens: the first candidate that any service has put forward."""
        await self._call(self._client.set("meshag:token_secret", candidate, nx=True))
        return str(await self._call(self._client.get("meshag:token_secret")))

    async def _call(self, call: Any) -> Any:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            with metrics.STORE_SECONDS.time():
                answer = await call
        except _FAILURES as error:
            raise _unavailable(error) from error
        if task and task.cancelling() > before:  # the client library swallows it: the task would go on for ever
            raise asyncio.CancelledError
        return answer


def no_session(session: SessionId) -> SessionError:
    """What is said of a session that is not there, and of one that the asker may not know of."""
    return SessionError(f"there is no session {session}, or it has ended")


def _key(session: SessionId, part: str) -> str:
    return f"session:{session}:{part}"


def _index(key: str) -> str:
    return f"{_INDEX}:{key}" if key else _INDEX


def _ended(session: SessionId) -> str:
    return f"ended:{session}"


def _config(version: int, request: SessionRequest) -> str:
    return msgspec.json.encode({"version": version, "request": request.model_dump(by_alias=True, mode="json")}).decode()


def _lease(text: str) -> Lease:
    worker, _, epoch = text.rpartition(" ")
    return Lease(WorkerId(worker), int(epoch))


def _unavailable(error: BaseException) -> StoreError:
    metrics.STORE_FAILURES.inc()
    if isinstance(error, exceptions.OutOfMemoryError):
        return StoreError("Valkey is full: give it more memory, or end sessions", code="store_full")
    return StoreError(f"Valkey does not answer: {type(error).__name__}")


async def _answer(call: Awaitable[Any] | Any) -> Any:
    return await call
