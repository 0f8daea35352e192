"""What is left of a session that expired by itself is taken down, however its transport behaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from meshag import subjects
from meshag.api import lifecycle
from meshag.api.upkeep import end_expired, sweep_rooms
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.bus.journal import Journal
from meshag.connectors.contracts import (
    Booking,
    Invitation,
    Options,
    TransportConnector,
)
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import ProviderUnavailable
from meshag.ids import new_session_id
from meshag.sessions.config import SessionRequest
from meshag.sessions.events import Event, Events, decode
from meshag.sessions.store import SessionRecord, SessionStore

pytestmark = pytest.mark.integration

ROOM = {"name": "a-room", "url": "https://example.com/a-room"}


class Hall(TransportConnector):
    """Rooms of no vendor."""

    name: ClassVar[str] = "hall"
    options: ClassVar[type[Options]] = Options

    def __init__(self) -> None:
        self.dismissed: list[tuple[str, dict[str, Any]]] = []
        self.fails = self.hangs = False
        self.orphans: list[str] = []

    async def invite(self, booking: Booking) -> Invitation:
        raise NotImplementedError

    async def dismiss(self, session: str, room: Mapping[str, Any]) -> None:
        self.dismissed.append((session, dict(room)))
        if self.hangs:
            await asyncio.sleep(60)
        if self.fails:
            raise ProviderUnavailable("the hall is closed")

    async def sweep(self, fleet: str, known: Callable[[str], Awaitable[bool]]) -> int:
        assert fleet
        if self.fails:
            raise ProviderUnavailable("the hall is closed")
        self.orphans = [session for session in self.orphans if await known(session)]
        return 0


@pytest.fixture
def hall() -> Hall:
    return Hall()


@pytest.fixture
async def worker(servers: EmbeddedServers, hall: Hall) -> AsyncIterator[Any]:
    store = await SessionStore.connect(servers.valkey_url)
    bus = await Bus.connect(servers.nats_url, name="test")
    acknowledged = Acknowledged(bus)
    await acknowledged.start()
    registry = SimpleNamespace(get=lambda stage, name: hall, names=lambda stage: ["hall"])
    events = Events(acknowledged)
    yield SimpleNamespace(store=store, bus=bus, acknowledged=acknowledged, events=events, registry=registry)
    await asyncio.gather(*lifecycle._background)
    await acknowledged.aclose()
    await bus.close()
    await store.aclose()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LATE_FRAMES_S", 0)
    monkeypatch.setattr(lifecycle, "DISMISS_S", 0.2)


async def expired(worker: Any, *, room: dict[str, Any]) -> SessionRecord:
    """A session of an API key that has expired a moment ago."""
    transport = {"primary": "hall", "config": {}}
    asked = SessionRequest.model_validate({"config": {"connectors": {"transport": transport}}})
    store: SessionStore = worker.store
    record = await store.create(new_session_id(), asked, 100, "a-key")
    if room:
        record = await store.set_room(record, room)
    await store.touch(record.id, 100)
    client = cast("Any", store._client)
    await client.delete(f"session:{record.id}:config", f"session:{record.id}:state")
    await client.zadd("expiring", {record.id: 1})
    return record


async def told(worker: Any, record: SessionRecord) -> list[Event]:
    """What watchers are told of it."""
    await asyncio.sleep(0.1)
    found = await Journal(worker.bus).payloads(subjects.event(record.id))
    return [event for event in map(decode, found) if event is not None]


async def left(worker: Any, record: SessionRecord) -> Any:
    client = cast("Any", worker.store._client)
    return await client.exists(f"remains:{record.id}") or await client.zscore("expiring", record.id)


async def test_it_is_told_of_and_its_room_is_taken_down(worker: Any, hall: Hall) -> None:
    record = await expired(worker, room=ROOM)
    await end_expired(worker)
    await end_expired(worker)
    assert hall.dismissed == [(record.id, ROOM)]
    (event,) = await told(worker, record)
    assert (event.type, event.key, event.data) == ("session_ended", "a-key", {"reason": "expired"})
    assert not await left(worker, record)


async def test_two_who_look_at_once_tell_it_once(worker: Any) -> None:
    records = [await expired(worker, room={}) for _ in range(5)]
    await asyncio.gather(end_expired(worker), end_expired(worker))
    for record in records:
        assert [event.type for event in await told(worker, record)] == ["session_ended"]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_room_that_cannot_be_taken_down_holds_up_nothing(worker: Any, hall: Hall, how: str) -> None:
    setattr(hall, how, True)
    records = [await expired(worker, room=ROOM) for _ in range(2)]
    await end_expired(worker)
    assert len(hall.dismissed) == 2
    for record in records:
        assert len(await told(worker, record)) == 1
        assert not await left(worker, record)


async def test_a_session_that_was_ended_is_not_told_of_again(worker: Any, hall: Hall) -> None:
    record = await expired(worker, room=ROOM)
    await worker.store.delete(record.id)
    await cast("Any", worker.store._client).zadd("expiring", {record.id: 1})  # as a crash between the two leaves it
    await end_expired(worker)
    assert await told(worker, record) == []
    assert hall.dismissed == []
    assert not await left(worker, record)


async def test_orphaned_rooms_are_looked_for_with_what_is_known(worker: Any, hall: Hall) -> None:
    there = await worker.store.create(new_session_id(), SessionRequest(), 100)
    hall.orphans = [there.id, new_session_id(), "no id at all"]
    await sweep_rooms(worker)
    assert hall.orphans == [there.id]
    hall.fails = True
    await sweep_rooms(worker)  # raises nothing
    await worker.store.delete(there.id)
