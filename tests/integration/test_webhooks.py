"""Deliveries on a real nats-server to a real HTTP server: each event once and in its order, whatever is answered."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from meshag.api import webhooks
from meshag.api.webhooks import Deliveries, Endpoint
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.embedded.servers import EmbeddedServers
from meshag.ids import SessionId, new_session_id
from meshag.sessions.events import EVENT_TYPES, Events
from receivers import Answer, Receiver
from standins import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of this test's own, and retries that do not take the time that they take."""
    monkeypatch.setattr(webhooks, "NAME", f"test-{secrets.token_hex(4)}")
    monkeypatch.setattr(webhooks, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(webhooks, "ACK_WAIT_S", 1.0)
    monkeypatch.setattr(webhooks, "HELD_S", 0.3)


@pytest.fixture
async def bus(servers: EmbeddedServers) -> AsyncIterator[Bus]:
    bus = await Bus.connect(servers.nats_url, name="test")
    yield bus
    await bus.close()


@pytest.fixture
async def events(bus: Bus) -> AsyncIterator[Events]:
    acknowledged = Acknowledged(bus)
    await acknowledged.start()
    events = Events(acknowledged)
    yield events
    await events.aclose()
    await acknowledged.aclose()


def deliveries(bus: Bus, receiver: Receiver, *types: str) -> Deliveries:
    return Deliveries(bus, Endpoint(receiver.url, b"secret", frozenset(types or EVENT_TYPES)))


@asynccontextmanager
async def running(work: Deliveries) -> AsyncIterator[None]:
    await work.declare()
    task = asyncio.create_task(work.run())
    try:
        yield
    finally:
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError), done


def tell(events: Events, session: SessionId, *numbers: int) -> None:
    for number in numbers:
        events.note("reply", session, "", turn=number, text=f"answer {number}", interrupted=False)


async def dead() -> None:
    """What one who is dead does at its end."""


def turns(taken: list[dict[str, Any]]) -> list[int]:
    return [event["data"]["turn"] for event in taken]


async def test_an_event_that_fails_twice_is_taken_the_third_time_under_the_same_id(bus: Bus, events: Events) -> None:
    session = new_session_id()
    with Receiver(lambda event, attempt: (500 if attempt < 3 else 200, {})) as receiver:
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1)
            await eventually("it is taken", lambda: receiver.of(session))
        assert len(set(receiver.ids())) == 1
        assert len(receiver.attempts) == 3
        (_, headers, body), *_, (_, again, same) = receiver.attempts
        assert body == same
        assert headers == again | {k: headers[k] for k in ("webhook-timestamp", "webhook-signature")}


async def test_a_session_waits_for_its_own_event_alone_and_is_told_in_order(bus: Bus, events: Events) -> None:
    stuck, free = new_session_id(), new_session_id()
    healed = False

    def decide(event: dict[str, Any], attempt: int) -> Answer:
        return (200 if healed or event["session_id"] == free or event["data"]["turn"] != 2 else 503, {})

    with Receiver(decide) as receiver:
        async with running(deliveries(bus, receiver)):
            for number in range(1, 6):
                tell(events, stuck, number)
                tell(events, free, number)
            await eventually("the other session is told all", lambda: len(receiver.of(free)) == 5)
            await eventually("it is tried again", lambda: len(receiver.attempts) > 9)
            assert turns(receiver.of(stuck)) == [1]
            healed = True
            await eventually("the rest follows", lambda: len(receiver.of(stuck)) == 5)
        assert turns(receiver.of(stuck)) == turns(receiver.of(free)) == [1, 2, 3, 4, 5]


async def test_only_the_types_that_are_wanted_are_sent(bus: Bus, events: Events) -> None:
    session = new_session_id()
    with Receiver() as receiver:
        async with running(deliveries(bus, receiver, "session_ended")):
            tell(events, session, 1, 2)
            await events.tell("session_ended", session, "", reason="ended")
            await eventually("it is taken", lambda: receiver.of(session))
        assert [event["type"] for event in receiver.of(session)] == ["session_ended"]
        assert len(receiver.attempts) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_is_refused_for_good_is_passed_over(bus: Bus, events: Events, status: int) -> None:
    session = new_session_id()
    with Receiver(lambda event, attempt: (status if event["data"]["turn"] == 1 else 200, {})) as receiver:
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1, 2)
            await eventually("the next is taken", lambda: receiver.of(session))
        assert turns(receiver.of(session)) == [2]
        assert len(receiver.attempts) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 408, 409, 425, 429, 302, 307])
async def test_what_an_operator_can_mend_is_tried_again_and_redirects_are_not_followed(
    bus: Bus, events: Events, status: int
) -> None:
    session = new_session_id()
    with Receiver() as receiver:
        elsewhere = {"Location": receiver.url + "/elsewhere"}
        receiver.decide = lambda event, attempt: (status, elsewhere) if attempt == 1 else (200, {})
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1)
            await eventually("it is taken", lambda: receiver.of(session))
        assert receiver.elsewhere == 0
        assert len(receiver.attempts) == 2


async def test_after_410_nothing_more_is_sent_and_nothing_is_lost(bus: Bus, events: Events) -> None:
    session = new_session_id()
    with Receiver(lambda event, attempt: (410, {})) as receiver:
        work = deliveries(bus, receiver)
        async with running(work):
            tell(events, session, 1)
            await eventually("it was asked", lambda: receiver.attempts)
            tell(events, session, 2)
            await asyncio.sleep(0.5)
            assert len(receiver.attempts) == 1
        receiver.decide = lambda event, attempt: (200, {})
        async with running(work):
            await eventually("begun anew, it sends all", lambda: len(receiver.of(session)) == 2)
        assert turns(receiver.of(session)) == [1, 2]


async def test_retry_after_is_obeyed_by_all_sessions(bus: Bus, events: Events) -> None:
    one, other = new_session_id(), new_session_id()
    with Receiver(lambda event, attempt: (429, {"Retry-After": "1"}) if attempt == 1 else (200, {})) as receiver:
        receiver_decide = receiver.decide
        receiver.decide = lambda event, n: receiver_decide(event, n) if event["session_id"] == one else (200, {})
        async with running(deliveries(bus, receiver)):
            tell(events, one, 1)
            await eventually("it was told to wait", lambda: receiver.attempts)
            tell(events, other, 1)
            await eventually("both are taken", lambda: receiver.of(one) and receiver.of(other))
        first, *later = [at for at, _, _ in receiver.attempts]
        assert min(later) - first >= 0.95


async def test_a_receiver_that_does_not_answer_has_not_taken_it(
    bus: Bus, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.3)
    session = new_session_id()

    def decide(event: dict[str, Any], attempt: int) -> Answer:
        if attempt == 1:
            time.sleep(0.8)  # on the receiver's own thread
        return (200, {})

    with Receiver(decide) as receiver:
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1)
            await eventually("it is tried again", lambda: len(receiver.attempts) == 2)


async def test_an_event_that_is_no_longer_kept_is_given_up(
    bus: Bus, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session_id()
    with Receiver(lambda event, attempt: (200 if event["data"]["turn"] == 2 else 500, {})) as receiver:
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1)
            await eventually("it is tried", lambda: len(receiver.attempts) > 2)
            monkeypatch.setattr(webhooks, "EVENT_AGE_S", 0.01)
            tell(events, session, 2)
            await eventually("the next one follows", lambda: receiver.of(session))


async def test_what_a_dead_deliverer_held_comes_first_to_the_next_one(
    servers: EmbeddedServers, bus: Bus, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one hears of later events at once, and of the earlier ones when the dead one's time is over."""
    sessions = [new_session_id() for _ in range(3)]
    dead_bus = await Bus.connect(servers.nats_url, name="dead")
    with Receiver(lambda event, attempt: (500, {})) as receiver:
        dying = deliveries(dead_bus, receiver)
        await dying.declare()
        task = asyncio.create_task(dying.run())
        for session in sessions:
            tell(events, session, 1, 2, 3)
        await eventually("it holds them", lambda: len({*receiver.ids()}) == 3)
        monkeypatch.setattr(dying, "_leave", dead)  # killed: it gives nothing back
        await dead_bus.close()
        receiver.decide = lambda event, attempt: (200, {})
        for session in sessions:
            tell(events, session, 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with running(deliveries(bus, receiver)):
            await eventually("all is told", lambda: all(len(receiver.of(one)) >= 4 for one in sessions))
        for session in sessions:
            assert turns(receiver.of(session)) == [1, 2, 3, 4]


async def test_a_deliverer_that_leaves_gives_back_at_once(
    bus: Bus, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ACK_WAIT_S", 60.0)
    session = new_session_id()
    with Receiver(lambda event, attempt: (500, {})) as receiver:
        async with running(deliveries(bus, receiver)):
            tell(events, session, 1, 2, 3)
            await eventually("it is tried", lambda: receiver.attempts)
        receiver.decide = lambda event, attempt: (200, {})
        async with running(deliveries(bus, receiver)):
            await eventually("all is told", lambda: len(receiver.of(session)) == 3, timeout_s=10)
        assert turns(receiver.of(session)) == [1, 2, 3]
