"""What a replayed stage has around it in place of servers: a bus with a journal, a store, a worker. All in memory.

The stage itself, its inlets, outlets and its reading of the journal are the real ones.
"""

import asyncio
import fnmatch
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from meshag import clock, subjects
from meshag.bus.journal import Stored
from meshag.errors import OverloadError
from meshag.ids import SessionId, WorkerId
from meshag.sessions.claims import Claim, Claimed
from meshag.sessions.store import Lease, SessionRecord
from meshag.subjects import Stage

_DIRECT_GET = "$JS.API.DIRECT.GET."

Deliver = Callable[[bytes, dict[str, str]], None]


class _Subscription:
    def __init__(self, bus: "TapeBus", subject: str, deliver: Deliver) -> None:
        self._bus, self.subject, self.deliver = bus, subject, deliver

    async def close(self) -> None:
        if self in self._bus.listening:
            self._bus.listening.remove(self)


class TapeBus:
    """Does what `bus.connection.Bus` does, for one replayed stage."""

    connected = settled = True
    lost_at_ns: int | None = None

    def __init__(self) -> None:
        self.listening: list[_Subscription] = []
        self._stored: dict[str, list[tuple[str, Stored]]] = {}
        self._inboxes = 0
        self.answers: dict[str, Callable[[bytes], bytes]] = {}
        """Who answers requests, by subject."""

    def keep(self, subject: str, payload: bytes, at_ns: int) -> None:
        """Put a message into the journal. Nobody hears it."""
        stream = self._stored.setdefault(subjects.stream_of(subject), [])
        stream.append((subject, Stored(len(stream) + 1, at_ns, payload)))

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        if subject.startswith(_DIRECT_GET):
            self._read(subject.removeprefix(_DIRECT_GET), msgspec.json.decode(data), reply)
            return
        self.keep(subject, data, clock.wall_ns())
        self._deliver(subject, data, {})

    def _deliver(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        for one in self.listening:
            if one.subject == subject:
                loop.call_soon(self._hand, one, data, headers)

    def _hand(self, one: _Subscription, data: bytes, headers: dict[str, str]) -> None:
        if one in self.listening:
            one.deliver(data, headers)

    def _read(self, stream: str, asked: dict[str, Any], inbox: str) -> None:
        """A (batched) direct get."""
        pattern = asked.get("last_by_subj") or asked["next_by_subj"]
        found = [one for subject, one in self._stored.get(stream, []) if fnmatch.fnmatchcase(subject, pattern)]
        if "last_by_subj" in asked:
            found = found[-1:]
        elif "start_time" in asked:
            since_ns = int(datetime.fromisoformat(asked["start_time"]).timestamp() * 1e9)
            found = [one for one in found if one.at_ns >= since_ns]
        else:
            found = [one for one in found if one.sequence >= asked["seq"]]
        batch = found[: asked.get("batch", 1)]
        for one in batch:
            time = datetime.fromtimestamp(one.at_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")
            self._deliver(inbox, one.payload, {"Nats-Sequence": str(one.sequence), "Nats-Time-Stamp": time})
        status = {"Status": "204" if batch else "404", "Nats-Num-Pending": str(len(found) - len(batch))}
        self._deliver(inbox, b"", status)

    async def subscribe(self, subject: str, deliver: Callable[[bytes], None]) -> _Subscription:
        return await self.subscribe_with_headers(subject, lambda data, _: deliver(data))

    async def subscribe_with_headers(self, subject: str, deliver: Deliver) -> _Subscription:
        subscription = _Subscription(self, subject, deliver)
        self.listening.append(subscription)
        return subscription

    async def request(self, subject: str, data: bytes, *, timeout_ms: int, headers: Any = None) -> bytes:
        if subject not in self.answers:
            raise OverloadError(f"nobody answers {subject}")
        return self.answers[subject](data)

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self._inboxes}"


class TapeAcknowledged:
    """Does what `bus.acknowledged.Acknowledged` does; every message is stored once."""

    def __init__(self, bus: TapeBus) -> None:
        self._bus = bus
        self._ids: set[str] = set()

    async def publish(self, subject: str, data: bytes, message_id: str) -> None:
        if message_id not in self._ids:
            self._ids.add(message_id)
            await self._bus.publish(subject, data)


class _Usage:
    """Nobody counts what a replay costs."""

    async def add(self, *args: Any) -> None:
        pass


class TapeStore:
    """Does what `SessionStore` does for a stage."""

    def __init__(self, record: SessionRecord, leases: dict[Stage, Lease]) -> None:
        self.record = record
        self.leases = leases
        self.exchanges: dict[int, bytes] = {}
        """What was said, by turn."""
        self.usage = _Usage()

    async def load(self, session: SessionId) -> SessionRecord:
        return self.record

    async def history(self, session: SessionId) -> list[bytes]:
        return [self.exchanges[turn] for turn in sorted(self.exchanges)]

    async def remember(self, session: SessionId, turn: int, exchange: bytes, ttl_s: int) -> None:
        self.exchanges[turn] = exchange

    async def lease(self, session: SessionId, stage: Stage) -> Lease | None:
        return self.leases.get(stage)

    async def remaining_s(self, session: SessionId) -> int | None:
        return self.record.ttl_s

    async def touch(self, session: SessionId, ttl_s: int) -> bool:
        return True

    async def set_status(self, session: SessionId, status: str) -> None:
        pass


class _Switches:
    """No provider is out of order: what did not answer in the recording does not answer here."""

    def state(self, stage: str, provider: str) -> str:
        return "closed"

    def failed(self, provider: str, error: Exception, options: bytes, deadlines: object = None) -> None:
        pass

    def on_change(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        return lambda: None


class _Fleet:
    """Everybody lives: who dies in the recording is replaced when the recording says so."""

    def is_alive(self, worker: WorkerId) -> bool:
        return True

    def is_dead(self, worker: WorkerId) -> bool:
        return False

    def least_busy(self, stage: Stage, but: set[WorkerId]) -> WorkerId | None:
        return None

    def on_death(self, callback: Callable[[WorkerId], None]) -> Callable[[], None]:
        return lambda: None


class _Events:
    """Nobody watches."""

    def note(self, *args: Any, **data: Any) -> None:
        pass

    async def tell(self, *args: Any, **data: Any) -> None:
        pass


class TapeWorker:
    """The worker that a replayed stage lives in: a `Host`, and for transport what `Worker` is to a `Call`."""

    def __init__(self, worker: WorkerId, bus: TapeBus, store: TapeStore, registry: Any, tools: Any) -> None:
        self.worker_id = worker
        self.bus, self.store, self.registry, self.tools = bus, store, registry, tools
        self.acknowledged = TapeAcknowledged(bus)
        self.breakers, self.fleet, self.events = _Switches(), _Fleet(), _Events()
        self.owned: dict[SessionId, Any] = {}
        self.draining = self.full = False
        self._closing: set[asyncio.Task[None]] = set()
        for stage, lease in store.leases.items():
            bus.answers[subjects.claim(stage, lease.worker)] = lambda data, lease=lease: _claimed(data, lease)  # type: ignore[misc]

    def sure(self) -> bool:
        return True

    def let_go(self, owned: Any, reason: str) -> None:
        owned.ending = reason
        task = asyncio.get_running_loop().create_task(self.part(owned))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def part(self, owned: Any) -> None:
        session = owned.session
        if self.owned.get(session) is owned:
            del self.owned[session]
        await owned.aclose()


def _claimed(data: bytes, lease: Lease) -> bytes:
    msgspec.msgpack.decode(data, type=Claim)
    return msgspec.msgpack.encode(Claimed(worker=lease.worker, epoch=lease.epoch))
