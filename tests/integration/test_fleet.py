"""Who notices whose death, on a real nats-server."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from meshag import clock, subjects
from meshag.bus.connection import Bus
from meshag.embedded.servers import EmbeddedServers
from meshag.ids import WorkerId, new_session_id, new_worker_id
from meshag.sessions.claims import Claim, Claimed, find_owner
from meshag.sessions.fleet import Fleet, Presence, client_name
from meshag.sessions.store import Lease

pytestmark = pytest.mark.integration

BEAT_MS = 100


class Member:
    """A worker as others see it: a connection with its name, and heartbeats."""

    def __init__(self, bus: Bus, worker: WorkerId) -> None:
        self.bus, self.worker, self.claims = bus, worker, 0
        self.beating = asyncio.create_task(self._beat())

    @classmethod
    async def join(cls, url: str) -> "Member":
        worker = new_worker_id()
        member = cls(await Bus.connect(url, name=client_name("stt", worker)), worker)
        await member.bus.serve(subjects.claim("stt", worker), member._claim)
        return member

    async def _claim(self, data: bytes) -> bytes:
        claim = msgspec.msgpack.decode(data, type=Claim)
        self.claims += 1
        return msgspec.msgpack.encode(Claimed(worker=self.worker, epoch=claim.known_epoch + 1))

    async def _beat(self) -> None:
        while True:
            presence = Presence(self.worker, "stt", self.claims, 10)
            await self.bus.publish(subjects.worker("stt", self.worker), msgspec.msgpack.encode(presence))
            await asyncio.sleep(BEAT_MS / 1000)

    async def leave(self) -> None:
        self.beating.cancel()
        await self.bus.close()


@pytest.fixture
async def fleet(servers: EmbeddedServers) -> AsyncIterator[Fleet]:
    bus = await Bus.connect(servers.nats_url, name="watcher")
    fleet = Fleet(bus, BEAT_MS)
    await fleet.start()
    yield fleet
    await fleet.aclose()
    await bus.close()


async def until(true: object, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.002)


async def test_a_closed_connection_is_noticed_before_a_heartbeat_is_missed(servers: EmbeddedServers, fleet: Fleet):
    member = await Member.join(servers.nats_url)
    await until(lambda: fleet.is_alive(member.worker))
    deaths: list[float] = []
    fleet.on_death(lambda worker: deaths.append(clock.monotonic_s()))
    began = clock.monotonic_s()
    transport = member.bus._client._transport
    assert transport is not None
    member.beating.cancel()
    await member.bus.close()
    await until(lambda: deaths)
    assert deaths[0] - began < 2 * BEAT_MS / 1000 + 1
    assert fleet.is_dead(member.worker)


async def test_a_silent_one_is_noticed_and_one_that_beats_is_left_alone(servers: EmbeddedServers, fleet: Fleet):
    silent, lively = await Member.join(servers.nats_url), await Member.join(servers.nats_url)
    await until(lambda: fleet.is_alive(silent.worker) and fleet.is_alive(lively.worker))
    deaths: list[WorkerId] = []
    fleet.on_death(deaths.append)
    silent.beating.cancel()
    await until(lambda: silent.worker in deaths)
    assert lively.worker not in deaths
    await silent.leave()
    await lively.leave()


async def test_claims_at_once_are_spread_over_the_living(servers: EmbeddedServers, fleet: Fleet):
    members = [await Member.join(servers.nats_url) for _ in range(3)]
    await until(lambda: all(fleet.is_alive(member.worker) for member in members))
    leases = await asyncio.gather(*(find_owner(fleet._bus, fleet, "stt", new_session_id(), 4) for _ in range(12)))
    assert {lease.epoch for lease in leases} == {5}
    assert [member.claims for member in members] == [4, 4, 4]
    await members[0].leave()
    await until(lambda: fleet.is_dead(members[0].worker))
    lease = await find_owner(fleet._bus, fleet, "stt", new_session_id())
    assert lease.worker in (members[1].worker, members[2].worker)
    assert isinstance(lease, Lease)
    for member in members[1:]:
        await member.leave()


async def test_nobody_is_buried_because_the_server_was_away(fresh_servers: EmbeddedServers):
    watcher = await Bus.connect(fresh_servers.nats_url, name="watcher")
    fleet = Fleet(watcher, BEAT_MS)
    await fleet.start()
    member = await Member.join(fresh_servers.nats_url)
    await until(lambda: fleet.is_alive(member.worker))
    deaths: list[WorkerId] = []
    fleet.on_death(deaths.append)
    fresh_servers.kill_nats()
    await asyncio.sleep(1)
    fresh_servers.restart_nats()
    await until(lambda: watcher.settled and member.bus.settled)
    await asyncio.sleep(1)
    assert deaths == []
    assert fleet.is_alive(member.worker)
    await member.leave()
    await fleet.aclose()
    await watcher.close()
