"""Who is alive, who is dead, who is asked next."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from meshag import clock, subjects
from meshag.errors import BusError, MeshError, OverloadError
from meshag.ids import WorkerId, new_session_id, new_worker_id
from meshag.sessions.claims import Claim, Claimed, ensure_owner, find_owner
from meshag.sessions.fleet import MISSED_BEATS, Fleet, Presence, client_name
from meshag.sessions.store import Lease
from meshag.subjects import DISCONNECTS, PRESENCE_ALL

pytestmark = pytest.mark.unit

BEAT_MS = 20
SESSION = new_session_id()


class FakeBus:
    """Delivers by hand; `answers` claims."""

    def __init__(self) -> None:
        self.connected = True
        self.heard: dict[str, Callable[[bytes], None]] = {}
        self.answers: dict[WorkerId, Any] = {}
        self.asked: list[tuple[WorkerId, int]] = []

    async def subscribe(self, subject: str, deliver: Callable[[bytes], None]) -> "FakeBus":
        self.heard[subject] = deliver
        return self

    async def close(self) -> None:
        pass

    async def request(self, subject: str, data: bytes, *, timeout_ms: int) -> bytes:
        worker = WorkerId(subject.rpartition(".")[2])
        claim = msgspec.msgpack.decode(data, type=Claim)
        self.asked.append((worker, claim.known_epoch))
        answer = self.answers[worker]
        if callable(answer):
            answer = answer(claim)
        if answer is None:
            await asyncio.sleep(60)
        if isinstance(answer, MeshError):
            raise answer
        return answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer)

    def beat(self, worker: WorkerId, **more: Any) -> None:
        presence = {"stage": "stt", "owned": 0, "capacity": 10} | more
        self.heard[PRESENCE_ALL](msgspec.msgpack.encode(Presence(worker, **presence)))

    def cut(self, name: str) -> None:
        self.heard[DISCONNECTS](msgspec.json.encode({"client": {"name": name, "id": 5}, "reason": "x"}))


@pytest.fixture
async def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
async def fleet(bus: FakeBus) -> Any:
    fleet = Fleet(bus, BEAT_MS)  # type: ignore[arg-type]
    await fleet.start()
    yield fleet
    await fleet.aclose()


@pytest.fixture
def deaths(fleet: Fleet) -> list[WorkerId]:
    deaths: list[WorkerId] = []
    fleet.on_death(deaths.append)
    return deaths


ONE, TWO = new_worker_id(), new_worker_id()


async def test_who_is_heard_is_alive(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.beat(ONE)
    bus.beat(TWO, stage="llm")
    assert fleet.is_alive(ONE)
    assert not fleet.is_dead(ONE)
    assert [presence.worker for presence in fleet.workers("llm")] == [TWO]
    assert len(fleet.workers()) == 2
    assert deaths == []


async def test_a_cut_connection_is_death_at_once_and_told_once(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.beat(ONE)
    bus.cut(client_name("stt", ONE))
    bus.cut(client_name("stt", ONE))
    assert deaths == [ONE]
    assert fleet.is_dead(ONE)
    assert not fleet.is_alive(ONE)
    bus.beat(ONE)  # it was only cut off
    assert fleet.is_alive(ONE)
    assert not fleet.is_dead(ONE)


async def test_who_leaves_is_gone(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.beat(ONE)
    bus.beat(ONE, leaving=True)
    assert deaths == [ONE]


async def test_silence_is_death(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.beat(ONE)
    for _ in range(MISSED_BEATS * 3):
        bus.beat(TWO)
        await asyncio.sleep(BEAT_MS / 1000)
    assert deaths == [ONE]
    assert fleet.is_alive(TWO)


async def test_of_the_dead_it_is_known_when_they_were_last_heard(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    before_s = clock.monotonic_s()
    bus.beat(ONE)
    after_s = clock.monotonic_s()
    assert fleet.last_heard_s(ONE) is None
    for _ in range(MISSED_BEATS * 3):
        bus.beat(TWO)
        await asyncio.sleep(BEAT_MS / 1000)
    heard_s = fleet.last_heard_s(ONE)
    assert heard_s is not None
    assert before_s <= heard_s <= after_s


async def test_when_nobody_is_heard_nobody_is_judged(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    """NATS hangs, and the connection seems fine: who watches does not hear its own beats either."""
    bus.beat(ONE)
    bus.beat(TWO)
    await asyncio.sleep(BEAT_MS * MISSED_BEATS * 3 / 1000)
    assert deaths == []
    assert fleet.is_alive(ONE)


async def test_who_is_cut_off_itself_judges_nobody(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.beat(ONE)
    bus.connected = False
    await asyncio.sleep(BEAT_MS * MISSED_BEATS * 3 / 1000)
    assert fleet.is_alive(ONE)
    bus.connected = True
    await asyncio.sleep(BEAT_MS / 1000)
    assert deaths == []


async def test_one_that_cannot_be_told_does_not_keep_it_from_the_others(bus: FakeBus, fleet: Fleet):
    told: list[WorkerId] = []

    def fail(worker: WorkerId) -> None:
        raise ValueError(worker)

    fleet.on_death(fail)
    fleet.on_death(told.append)
    bus.beat(ONE)
    bus.cut(client_name("stt", ONE))
    assert told == [ONE]


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"\x91\xa1\x80", b'{"client":{"name":"\xff"}}', b'{"client":{"name":"meshag/stt/*"}}',
             b'{"client":{"name":"meshag/stt/"}}', b'{"client":{}}', b'{"client":7}', bytes(range(256))]
)  # fmt: skip
async def test_garbage_is_passed_over(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId], data: bytes):
    bus.heard[PRESENCE_ALL](data)
    bus.heard[DISCONNECTS](data)
    assert fleet.workers() == []
    assert deaths == []


async def test_strangers_connections_are_none_of_ours(bus: FakeBus, fleet: Fleet, deaths: list[WorkerId]):
    bus.cut(f"other/{ONE}")
    bus.cut(ONE)
    assert deaths == []


async def test_the_least_busy_with_room_is_asked(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE, owned=5, capacity=10)
    bus.beat(TWO, owned=6, capacity=100)
    assert fleet.least_busy("stt", set()) == TWO
    assert fleet.least_busy("stt", {TWO}) == ONE
    assert fleet.least_busy("stt", {ONE, TWO}) is None
    assert fleet.least_busy("llm", set()) is None
    bus.beat(TWO, owned=6, capacity=100, draining=True)
    bus.beat(ONE, owned=10, capacity=10)
    assert fleet.least_busy("stt", set()) is None


async def test_claims_at_the_same_moment_are_spread(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.beat(TWO)
    chosen = [fleet.least_busy("stt", set()) for _ in range(10)]
    assert chosen.count(ONE) == chosen.count(TWO) == 5


# -- asking for an owner ----------------------------------------------------------------------------------------------


async def _find(bus: FakeBus, fleet: Fleet, known: int = 0) -> Lease:
    return await find_owner(bus, fleet, "stt", SESSION, known)  # type: ignore[arg-type]


async def test_nobody_there_is_no_capacity(bus: FakeBus, fleet: Fleet):
    with pytest.raises(OverloadError):
        await _find(bus, fleet)


async def test_one_that_is_full_is_passed_over(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.beat(TWO, owned=1)
    bus.answers[ONE] = Claimed(code="no_capacity", error="full", retryable=True)
    bus.answers[TWO] = Claimed(worker=TWO, epoch=1)
    assert await _find(bus, fleet) == Lease(TWO, 1)


async def test_what_another_would_refuse_too_is_not_asked_twice(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.beat(TWO)
    bus.answers[ONE] = bus.answers[TWO] = Claimed(code="session_not_found", error="no such session")
    with pytest.raises(MeshError) as caught:
        await _find(bus, fleet)
    assert caught.value.code == "session_not_found"
    assert len(bus.asked) == 1


@pytest.mark.parametrize("answer", [b"garbage", b"\x91\xa1\x80", BusError("silent"), OverloadError("nobody")])
async def test_one_that_answers_nonsense_or_nothing_is_passed_over(bus: FakeBus, fleet: Fleet, answer: Any):
    bus.beat(ONE)
    bus.beat(TWO, owned=1)
    bus.answers = {ONE: answer, TWO: Claimed(worker=TWO, epoch=2)}
    assert await _find(bus, fleet, 1) == Lease(TWO, 2)


async def test_one_that_dies_while_it_is_asked_is_not_waited_for(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.answers = {ONE: None, TWO: Claimed(worker=TWO, epoch=2)}
    finding = asyncio.create_task(_find(bus, fleet, 1))
    await asyncio.sleep(0.01)
    bus.beat(TWO)
    bus.cut(client_name("stt", ONE))
    async with asyncio.timeout(2):
        assert await finding == Lease(TWO, 2)


async def test_another_that_lives_and_owns_it_already_is_the_answer(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.beat(TWO, draining=True)
    bus.answers[ONE] = Claimed(worker=TWO, epoch=4)
    assert await _find(bus, fleet, 1) == Lease(TWO, 4)


async def test_one_that_took_the_lease_and_died_is_not_taken_for_the_owner(bus: FakeBus, fleet: Fleet):
    """Else the stage would stay deaf: its death was told before anybody knew that it owned the session."""
    bus.beat(ONE)

    def answer(claim: Claim) -> Claimed:
        return Claimed(worker=TWO, epoch=4) if claim.known_epoch < 4 else Claimed(worker=ONE, epoch=5)

    bus.answers[ONE] = answer
    assert await _find(bus, fleet, 1) == Lease(ONE, 5)
    assert bus.asked == [(ONE, 1), (ONE, 4)]


async def _ensure(bus: FakeBus, fleet: Fleet, lease: Lease | None) -> Lease:
    return await ensure_owner(bus, fleet, "stt", SESSION, lease)  # type: ignore[arg-type]


async def test_a_stored_owner_is_asked_whether_it_still_is(bus: FakeBus, fleet: Fleet):
    bus.beat(ONE)
    bus.beat(TWO)
    bus.answers[ONE] = Claimed(worker=ONE, epoch=3)
    assert await _ensure(bus, fleet, Lease(ONE, 3)) == Lease(ONE, 3)
    assert bus.asked == [(ONE, 2)]


@pytest.mark.parametrize("answer", [Claimed(code="no_capacity", error="draining", retryable=True), BusError("silent")])
async def test_one_that_is_not_is_replaced(bus: FakeBus, fleet: Fleet, answer: Any):
    bus.beat(ONE, draining=True)
    bus.beat(TWO)
    bus.answers = {ONE: answer, TWO: Claimed(worker=TWO, epoch=4)}
    assert await _ensure(bus, fleet, Lease(ONE, 3)) == Lease(TWO, 4)
    assert bus.asked[-1] == (TWO, 3)


async def test_a_dead_or_released_one_is_not_asked(bus: FakeBus, fleet: Fleet):
    bus.beat(TWO)
    bus.answers[TWO] = Claimed(worker=TWO, epoch=4)
    assert await _ensure(bus, fleet, Lease(ONE, 3)) == Lease(TWO, 4)
    assert await _ensure(bus, fleet, Lease(WorkerId(""), 3)) == Lease(TWO, 4)
    assert await _ensure(bus, fleet, None) == Lease(TWO, 4)
    assert [known for _, known in bus.asked] == [3, 3, 0]
    assert subjects.claim("stt", TWO).endswith(TWO)
