"""The transport worker that delivers the fleet's webhooks is killed: the other delivers all, in order, none lost."""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from meshag.api.webhooks import key_of, signed
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.embedded.mesh import Mesh, Service
from meshag.ids import new_session_id
from meshag.sessions.events import Events
from meshes import call, create, start_mesh
from receivers import Answer, Receiver
from standins import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def pair(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two transport workers that post to the receiver."""
    mesh = start_mesh(
        tmp_path_factory.mktemp("webhooks"),
        workers={"stt": 1, "llm": 1, "tts": 1, "transport": 2},
        MESHAG_WEBHOOK_URL=receiver.url,
        MESHAG_WEBHOOK_SECRET=SECRET,
    )
    yield mesh
    mesh.stop()


def deliverer(mesh: Mesh) -> Service:
    """The transport worker that is first by name."""
    found = [service for service in mesh.services if service.stage == "transport"]
    return min(found, key=lambda service: str(mesh._ready_body(service)["worker"]))


async def test_the_deliverer_is_killed_in_the_middle(pair: Mesh, receiver: Receiver) -> None:
    sessions = [new_session_id() for _ in range(4)]
    failing = True

    def decide(event: dict[str, Any], attempt: int) -> Answer:
        if event["session_id"] == sessions[0]:  # one that will not go through before
            return (500 if failing else 200, {})
        return (200 if attempt > event["data"]["turn"] % 2 else 500, {})  # every other event fails once

    receiver.decide = decide
    assert pair.servers is not None
    bus = await Bus.connect(pair.servers.nats_url, name="teller")
    acknowledged = Acknowledged(bus)
    await acknowledged.start()
    events = Events(acknowledged)
    try:
        for number in range(12):
            for session in sessions:
                events.note("reply", session, "", turn=number, text="x", interrupted=False)
        await eventually("some are delivered", lambda: len(receiver.taken) > 3)
        deliverer(pair).child.send(signal.SIGKILL)
        for number in range(12, 15):
            for session in sessions:
                events.note("reply", session, "", turn=number, text="x", interrupted=False)
        await asyncio.sleep(0.5)
        failing = False
        await eventually(
            "the other delivers all", lambda: all(len(_turns(receiver, s)) == 15 for s in sessions), timeout_s=60
        )
    finally:
        await acknowledged.aclose()
        await bus.close()
    for session in sessions:
        assert _turns(receiver, session) == list(range(15))
    for _, headers, body in receiver.attempts:
        told = signed(key_of(SECRET), headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == told["webhook-signature"]


def _turns(receiver: Receiver, session: str) -> list[int]:
    """The turns that were delivered; one that was delivered as its deliverer died is delivered again, at once."""
    found: list[int] = []
    for event in receiver.of(session):
        if not found or event["data"]["turn"] != found[-1]:
            found.append(event["data"]["turn"])
    return found


async def test_the_fleet_says_once_what_happened_to_a_session(pair: Mesh, receiver: Receiver) -> None:
    made = await asyncio.to_thread(create, pair)
    session = made["session_id"]
    await asyncio.to_thread(call, pair, "DELETE", f"/sessions/{session}")
    await eventually("both are delivered", lambda: len(receiver.of(session)) == 2)
    await asyncio.sleep(1)
    assert [event["type"] for event in receiver.of(session)] == ["session_created", "session_ended"]
