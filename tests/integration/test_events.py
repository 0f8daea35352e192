"""What happens to a session is told to whoever watches: in order, once, and to nobody whom it does not concern."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from meshag import subjects
from meshag.api import events as route
from meshag.api import feed as feeds
from meshag.api.access import rule_of
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.embedded.mesh import Mesh
from meshag.ids import SessionId, new_session_id
from meshag.sessions.events import Events
from meshes import ask, call, create, join, start_mesh
from standins import eventually, exchange, saying, stored
from watchers import Watch, address

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TALK = ["session_created", "participant_joined", "transcript", "reply", "participant_left", "session_ended"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two transport workers."""
    workers = {"stt": 1, "llm": 1, "tts": 1, "transport": 2}
    mesh = start_mesh(tmp_path_factory.mktemp("events"), workers=workers)
    yield mesh
    mesh.stop()


@asynccontextmanager
async def teller(mesh: Mesh) -> AsyncIterator[Events]:
    """Tells what never happened."""
    assert mesh.servers is not None
    bus = await Bus.connect(mesh.servers.nats_url, name="teller")
    acknowledged = Acknowledged(bus)
    await acknowledged.start()
    try:
        yield Events(acknowledged)
    finally:
        await acknowledged.aclose()
        await bus.close()


async def talk(mesh: Mesh, **more: Any) -> str:
    """Create, join, speak, hear, leave, end."""
    made = await asyncio.to_thread(create, mesh, saying("It is on its way."), **more)
    async with join(made) as caller:
        await ask(caller, 7)
        await caller.wait_for("speech_ended")
    await asyncio.to_thread(call, mesh, "DELETE", f"/sessions/{made['session_id']}")
    return str(made["session_id"])


async def test_a_session_from_beginning_to_end_is_told_by_every_worker(pair: Mesh) -> None:
    async with Watch(address(pair)) as here, Watch(address(pair, 1)) as there:
        session = await talk(pair, session_name="Anna")
        for watch in (here, there):
            await watch.wait(lambda watch=watch: "session_ended" in watch.types(session))
    told = here.events(session)
    assert [event["type"] for event in told] == TALK
    assert told == there.events(session)
    assert [event["id"] for event in told] == sorted({event["id"] for event in told})
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["at"]) for event in told)
    assert [event["data"] for event in told] == [
        {"name": "Anna", "transport": "websocket"},
        {"participant": "caller-1", "transport": "websocket"},
        {"turn": 1, "text": "Where is my order number 7?", "provider": "instant"},
        {"turn": 1, "text": "It is on its way.", "interrupted": False},
        {"participant": "caller-1", "transport": "websocket", "reason": "bye"},
        {"reason": "ended"},
    ]


async def test_without_transcription_nothing_that_was_said_is_told(pair: Mesh) -> None:
    async with Watch(address(pair)) as watch:
        session = await talk(pair, enable_transcription=False)
        await watch.wait(lambda: "session_ended" in watch.types(session))
    assert watch.types(session) == [kind for kind in TALK if kind not in ("transcript", "reply")]


async def test_a_reply_that_was_interrupted_is_told_as_far_as_it_was_heard(pair: Mesh) -> None:
    made = await asyncio.to_thread(create, pair)
    async with Watch(address(pair), sessions=made["session_id"]) as watch, join(made) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started")
        await asyncio.sleep(1.2)
        await caller.send({"type": "interrupt"})
        (reply,) = await watch.wait(lambda: watch.of("reply"))
        await caller.type("And typed?")
        await watch.wait(lambda: len(watch.of("transcript")) == 2)
    assert reply["data"]["interrupted"] is True
    assert reply["data"]["text"].startswith("Sure thing I can look that up for you now.")
    assert not reply["data"]["text"].endswith("around noon.")
    assert watch.of("transcript")[1]["data"] == {"turn": 2, "text": "And typed?", "provider": ""}


async def test_a_changed_configuration_and_an_error_are_told(pair: Mesh) -> None:
    made = await asyncio.to_thread(create, pair)
    session = made["session_id"]
    late = {"primary": "instant", "config": {"instant": {"delay_ms": 5_000}}, "deadlines": {"first_ms": 100}}
    patch = {"config": {"connectors": {"llm": late}}}
    async with Watch(address(pair), sessions=session, types="session_updated,error") as watch, join(made) as caller:
        assert (await asyncio.to_thread(call, pair, "PATCH", f"/sessions/{session}/config", patch))[0] == 200
        await watch.wait(lambda: watch.of("session_updated"))
        await caller.type("Anybody?")
        (error,) = await watch.wait(lambda: watch.of("error"))
        (seen,) = caller.of("error")
    assert watch.of("session_updated")[0]["data"] == {"version": 2}
    assert error["data"] == {name: seen[name] for name in ("turn", "stage", "code", "message")}
    assert error["data"]["stage"] == "llm"


async def test_who_was_away_gets_everything_after_its_last_event_once_and_from_another_worker(pair: Mesh) -> None:
    session = new_session_id()
    async with teller(pair) as events:
        async with Watch(address(pair), sessions=session) as watch:
            for number in range(5):
                await events.tell("reply", session, "", turn=number, text="x", interrupted=False)
            await watch.wait(lambda: len(watch.events()) == 5)
        last = watch.events()[-1]["id"]
        for number in range(5, 700):  # more than are read from the stream at once
            events.note("reply", session, "", turn=number, text="x", interrupted=False)
        telling = asyncio.create_task(tell_on(events, session, 700, 900))  # and on, while it comes back
        async with Watch(address(pair, 1), after=last, sessions=session) as again:
            await again.wait(lambda: len(again.events()) >= 895)
            await telling
            assert [event["data"]["turn"] for event in again.events()] == list(range(5, 900))
            ids = [event["id"] for event in again.events()]
            assert ids == sorted(set(ids))
            assert again.messages[0] == {"type": "hello", "types": [], "sessions": [session], "last_id": last}


async def tell_on(events: Events, session: SessionId, first: int, end: int) -> None:
    for number in range(first, end):
        await events.tell("reply", session, "", turn=number, text="x", interrupted=False)
        await asyncio.sleep(0.001)


async def test_nats_dies_and_a_watcher_misses_nothing(pair: Mesh) -> None:
    session = new_session_id()
    async with teller(pair) as events, Watch(address(pair), sessions=session) as watch:
        await events.tell("reply", session, "", turn=0, text="x", interrupted=False)
        await watch.wait(lambda: len(watch.events()) == 1)
        assert pair._servers is not None
        await asyncio.to_thread(pair._servers.nats.restart)
        for number in range(1, 20):
            await events.tell("reply", session, "", turn=number, text="x", interrupted=False)
        await watch.wait(lambda: len(watch.events()) >= 20, timeout_s=30)
        assert [event["data"]["turn"] for event in watch.events()] == list(range(20))


async def test_a_filter_is_changed_while_watching(pair: Mesh) -> None:
    one, other = new_session_id(), new_session_id()
    async with teller(pair) as events, Watch(address(pair), sessions=one) as watch:
        await watch.socket.send_json({"type": "subscribe", "types": ["error"], "sessions": [other]})
        await watch.wait(lambda: watch.of("subscribed"))
        await events.tell("error", one, "", stage="llm", code="x", message="")
        await events.tell("reply", other, "", turn=1, text="", interrupted=False)
        await events.tell("error", other, "", stage="llm", code="y", message="")
        await watch.wait(lambda: watch.events())
        await watch.socket.send_json({"type": "subscribe"})
        await watch.wait(lambda: len(watch.of("subscribed")) == 2)
        await events.tell("error", one, "", stage="llm", code="z", message="")
        await watch.wait(lambda: len(watch.events()) == 2)
    assert [event["data"]["code"] for event in watch.events()] == ["y", "z"]


async def test_pings_go_both_ways_and_tell_how_far_it_is(pair: Mesh) -> None:
    async with teller(pair) as events, Watch(address(pair), types="session_ended") as watch:
        await events.tell("reply", new_session_id(), "", turn=1, text="not for it", interrupted=False)
        await eventually("it is past the event", lambda: _past(watch))
        assert watch.events() == []
        await watch.socket.send_json({"type": "pong"})
        await watch.socket.send_str("[]")
        await watch.socket.send_json({"type": "fly"})
        await watch.socket.send_json({"type": "subscribe", "types": ["fly"]})
        await watch.wait(lambda: len(watch.of("refused")) == 3)
    assert [message["code"] for message in watch.of("refused")] == [
        "message_invalid",
        "message_unknown",
        "config_invalid",
    ]


async def _past(watch: Watch) -> bool:
    await watch.socket.send_json({"type": "ping"})
    await asyncio.sleep(0.1)
    return any(pong["last_id"] > watch.messages[0]["last_id"] for pong in watch.of("pong"))


@pytest.mark.parametrize("query", ["after=-1", "after=x", "types=fly", "sessions=../x", "after=99999999999999999999"])
def test_a_wrong_query_is_refused(pair: Mesh, query: str) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    status, _, body = exchange(pair, "GET", f"/ws?{query}", headers=upgrade | {"Sec-WebSocket-Key": "x" * 22 + "=="})
    assert status == 422
    assert body["path"] == query.partition("=")[0]


async def test_what_is_no_longer_kept_is_said_to_be_lost(pair: Mesh) -> None:
    session = new_session_id()
    assert pair.servers is not None
    bus = await Bus.connect(pair.servers.nats_url, name="test")
    try:
        async with teller(pair) as events, Watch(address(pair)) as live:
            for number in range(20):
                await events.tell("reply", session, "", turn=number, text="x", interrupted=False)
            await live.wait(lambda: len(live.events(session)) == 20)
            ids = [event["id"] for event in live.events(session)]
            stream = bus._client.jetstream()
            await stream.purge_stream(subjects.EVENTS, seq=ids[10])
            async with Watch(address(pair), after=ids[3]) as late:
                await late.wait(lambda: len(late.events()) >= 10)
                assert late.messages[1] == {
                    "type": "events_lost",
                    "after": ids[3],
                    "first_id": ids[10],
                    "last_id": ids[10] - 1,
                }
                assert [event["id"] for event in late.events()] == ids[10:]
            await stream.purge_stream(subjects.EVENTS)
            async with Watch(address(pair), after=ids[3]) as none:
                (lost,) = await none.wait(lambda: none.of("events_lost"))
                assert lost["first_id"] == ids[-1] + 1
                await events.tell("reply", session, "", turn=99, text="x", interrupted=False)
                (event,) = await none.wait(lambda: none.events())
                assert event["id"] == lost["first_id"]
            async with Watch(address(pair), after=10**9) as other:  # the numbers of a stream that is gone
                (lost,) = await other.wait(lambda: other.of("events_lost"))
                await other.wait(lambda: other.events())
                assert lost["first_id"] == other.events()[0]["id"]
    finally:
        await bus.close()


async def test_who_does_not_read_is_closed_and_may_resume(pair: Mesh) -> None:
    session = new_session_id()
    text = "x" * 4_000
    async with teller(pair) as events, Watch(address(pair), reads=False, sessions=session) as slow:
        count = feeds.WAITING + 2_500  # and what fits into the buffers between
        for number in range(count):
            events.note("reply", session, "", turn=number, text=text, interrupted=False)
        async with Watch(address(pair), after=0, sessions=session) as quick:
            await quick.wait(lambda: len(quick.events()) == count, timeout_s=30)
        slow.read()
        await slow.wait(lambda: slow.closed)
        assert slow.closed is not None
        assert slow.closed[0] == aiohttp.WSCloseCode.TRY_AGAIN_LATER
        assert "?after=" in slow.closed[1]
        got = [event["data"]["turn"] for event in slow.events()]
        assert got == list(range(len(got)))
        assert len(got) < count
        async with Watch(address(pair), after=slow.events()[-1]["id"], sessions=session) as again:
            await again.wait(lambda: len(again.events()) == count - len(got), timeout_s=30)
            assert [event["data"]["turn"] for event in again.events()] == list(range(len(got), count))


async def test_a_session_that_expires_is_ended_once_in_the_fleet(pair: Mesh) -> None:
    async with Watch(address(pair)) as watch:
        made = await asyncio.to_thread(create, pair, ttl_s=10)
        session = made["session_id"]
        valkey = stored(pair)
        try:
            valkey.expire(f"session:{session}:config", 1)
            valkey.zadd("expiring", {session: 0})
            valkey.zrem("sessions", session)  # as a listing does that comes first
            await watch.wait(lambda: "session_ended" in watch.types(session))
            await eventually("nothing is left", lambda: not valkey.exists(f"remains:{session}"))
            assert valkey.zscore("expiring", session) is None
        finally:
            valkey.close()
        await asyncio.sleep(2.5)  # longer than between two looks
    ended = [event for event in watch.events(session) if event["type"] == "session_ended"]
    assert [event["data"] for event in ended] == [{"reason": "expired"}]


async def test_a_session_that_lives_longer_than_was_noted_is_left_alone(pair: Mesh) -> None:
    made = await asyncio.to_thread(create, pair)
    session = made["session_id"]
    valkey = stored(pair)
    try:
        valkey.zadd("expiring", {session: 0})
        await eventually("its time is corrected", lambda: float(valkey.zscore("expiring", session) or 0) > 0)
        assert valkey.exists(f"session:{session}:config")
        assert valkey.exists(f"remains:{session}")
        await asyncio.to_thread(call, pair, "DELETE", f"/sessions/{session}")
        assert valkey.zscore("expiring", session) is None
        assert not valkey.exists(f"remains:{session}")
    finally:
        valkey.close()


def test_the_route_is_for_those_who_may_read() -> None:
    assert rule_of(route.watch) == "read"
