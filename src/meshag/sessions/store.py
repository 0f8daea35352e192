"""Sessions in Valkey: what was asked for, where it stands, what was said, who owns it.

    session:<id>:config         JSON: the request and its version
    session:<id>:state          hash: status, created_at_s, ttl_s, key, room (JSON)
    session:<id>:history        hash: turn number to JSON exchange
    session:<id>:lease:<stage>  "<worker> <epoch>"
    sessions                    sorted set: ids by the time at which they were made
    ended:<id>                  it was ended: for ten minutes nobody may put it back

Every key of a session has its TTL. A live call never needs Valkey to go on; a new one does.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import msgspec
from valkey import exceptions
from valkey.asyncio import Valkey

from meshag import clock
from meshag.errors import SessionError, StoreError
from meshag.ids import SessionId, WorkerId, parse_session_id
from meshag.sessions.config import SessionRequest
from meshag.sessions.tools import STORED
from meshag.subjects import STAGES, Stage

_FAILURES = (exceptions.ValkeyError, OSError, TimeoutError)

_INDEX = "sessions"

_CLAIM = """
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

_NOTE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
"""

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

    @classmethod
    async def connect(cls, url: str, *, allow_volatile: bool = False, timeout_ms: int = 5000) -> "SessionStore":
        """Connect, and refuse a server that may lose sessions. Raises StoreError, naming VALKEY_URL."""
        address = url.rsplit("@", 1)[-1].removeprefix("valkey://").removeprefix("redis://")
        try:
            client = Valkey.from_url(
                url, decode_responses=True, socket_timeout=2, socket_connect_timeout=2, health_check_interval=15
            )
        except ValueError as error:
            raise StoreError(f"VALKEY_URL is not a Valkey address: {error}") from None
        store = cls(client, address)
        deadline = clock.monotonic_s() + timeout_ms / 1000
        while True:
            try:
                await _answer(client.ping())
                break
            except _FAILURES as error:
                if isinstance(error, exceptions.AuthenticationError) or clock.monotonic_s() > deadline:
                    await store.aclose()
                    raise StoreError(
                        f"Valkey does not answer at {address}: {error}. Start valkey-server, or set VALKEY_URL"
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

    async def create(self, session: SessionId, request: SessionRequest, ttl_s: int, key: str = "") -> SessionRecord:
        """Store a new session. `key`: the id of the API key that it belongs to."""
        record = SessionRecord(session, 1, request, "created", clock.wall_s(), ttl_s, key)
        await self.put(record)
        return record

    async def put(self, record: SessionRecord) -> None:
        """Store a session as it is: a new one, or again what a flushed Valkey has forgotten."""
        pipe = self._client.pipeline(transaction=True)
        pipe.set(_key(record.id, "config"), _config(record.version, record.request), ex=record.ttl_s)
        state: dict[str, str | float] = {
            "status": record.status,
            "created_at_s": record.created_at_s,
            "ttl_s": record.ttl_s,
            "key": record.key,
            "room": msgspec.json.encode(record.room).decode(),
        }
        pipe.hset(_key(record.id, "state"), mapping=cast("Any", state))
        pipe.expire(_key(record.id, "state"), record.ttl_s)
        pipe.zadd(_INDEX, {record.id: record.created_at_s})
        await self._call(pipe.execute())

    async def load(self, session: SessionId) -> SessionRecord:
        """A session as it is stored. Raises SessionError when there is none."""
        pipe = self._client.pipeline(transaction=False)
        pipe.get(_key(session, "config"))
        pipe.hgetall(_key(session, "state"))
        config, state = await self._call(pipe.execute())
        if config is None:
            raise SessionError(f"there is no session {session}, or it has ended")
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

    async def change_config(self, record: SessionRecord, request: SessionRequest) -> SessionRecord:
        """Replace the configuration of a session. Raises SessionError when it has gone meanwhile."""
        changed = msgspec.structs.replace(record, version=record.version + 1, request=request)
        data = _config(changed.version, request)
        done = await self._call(self._change(keys=[_key(record.id, "config")], args=[record.version, data]))
        if done == "gone":
            raise SessionError(f"there is no session {record.id}, or it has ended")
        if done == "changed":
            raise StoreError("the session was changed by somebody else at the same time", code="session_changed")
        return changed

    async def set_room(self, record: SessionRecord, room: dict[str, Any]) -> SessionRecord:
        """Note where the session's caller and agent meet. Does nothing for one that is gone."""
        await self._state(record.id, "room", msgspec.json.encode(room).decode())
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
        for part in ("config", "state", "history", *(f"lease:{stage}" for stage in STAGES)):
            pipe.expire(_key(session, part), ttl_s)
        return bool((await self._call(pipe.execute()))[0])

    async def extend(self, record: SessionRecord, ttl_s: int) -> SessionRecord:
        """Change how long the session outlives its last sign of life. Raises SessionError when it has gone."""
        if not await self.touch(record.id, ttl_s):
            raise SessionError(f"there is no session {record.id}, or it has ended")
        await self._call(self._client.hset(_key(record.id, "state"), "ttl_s", str(ttl_s)))
        return msgspec.structs.replace(record, ttl_s=ttl_s)

    async def remaining_s(self, session: SessionId) -> int | None:
        """Seconds until the session expires; None when it is not there."""
        left = await self._call(self._client.ttl(_key(session, "config")))
        return None if left < 0 else int(left)

    async def delete(self, session: SessionId) -> bool:
        """Forget a session with everything that belongs to it. False when it was not there."""
        parts = ("config", "state", "history", *(f"lease:{stage}" for stage in STAGES))
        pipe = self._client.pipeline(transaction=True)
        pipe.exists(_key(session, "config"))
        pipe.delete(*(_key(session, part) for part in parts))
        pipe.zrem(_INDEX, session)
        pipe.set(_ended(session), "", ex=ENDED_S)
        return bool((await self._call(pipe.execute()))[0])

    async def ids(self, *, limit: int = 100) -> list[SessionId]:
        """The newest sessions. Those that have expired are dropped from the index on the way."""
        found: list[SessionId] = []
        start = 0
        while len(found) < limit:
            members = await self._call(self._client.zrevrange(_INDEX, start, start + limit - 1))
            if not members:
                break
            pipe = self._client.pipeline(transaction=False)
            for member in members:
                pipe.exists(_key(SessionId(member), "config"))
            there = await self._call(pipe.execute())
            gone = [member for member, exists in zip(members, there, strict=True) if not exists]
            if gone:
                await self._call(self._client.zrem(_INDEX, *gone))
            kept = (parse_session_id(member) for member, exists in zip(members, there, strict=True) if exists)
            found.extend(session for session in kept if session)
            start += len(members) - len(gone)
        return found[:limit]

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

    # -- ownership ----------------------------------------------------------------------------------------------------

    async def claim(self, session: SessionId, stage: Stage, worker: WorkerId, known_epoch: int, ttl_s: int) -> Lease:
        """Take the lease unless another holds an epoch above `known_epoch`. Returns it as it stands: ours or not.

        The new epoch is above both what is stored and what the asker knew, so it grows even when Valkey was flushed.
        Who asks does not own the session, whatever is stored: it may have lost it.
        """
        answer = await self._call(
            self._claim(keys=[_key(session, f"lease:{stage}")], args=[worker, known_epoch, ttl_s])
        )
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
            answer = await call
        except _FAILURES as error:
            raise _unavailable(error) from error
        if task and task.cancelling() > before:  # the client library swallows it: the task would go on for ever
            raise asyncio.CancelledError
        return answer


def _key(session: SessionId, part: str) -> str:
    return f"session:{session}:{part}"


def _ended(session: SessionId) -> str:
    return f"ended:{session}"


def _config(version: int, request: SessionRequest) -> str:
    return msgspec.json.encode({"version": version, "request": request.model_dump(by_alias=True, mode="json")}).decode()


def _lease(text: str) -> Lease:
    worker, _, epoch = text.rpartition(" ")
    return Lease(WorkerId(worker), int(epoch))


def _unavailable(error: BaseException) -> StoreError:
    if isinstance(error, exceptions.OutOfMemoryError):
        return StoreError("Valkey is full: give it more memory, or end sessions", code="store_full")
    return StoreError(f"Valkey does not answer: {type(error).__name__}")


async def _answer(call: Awaitable[Any] | Any) -> Any:
    return await call
