"""The transport of a call is killed, frozen or drained: its caller comes back by another, and hears the rest once."""

import asyncio
import json
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from bench import instant
from meshag import clock, subjects
from meshag.bus.connection import Bus
from meshag.embedded.mesh import Mesh, Service
from meshag.frames import Interrupt, encode
from meshag.ids import SessionId
from meshag.testing import TestCaller
from meshes import ask, create, join, mend, slow, start_mesh
from standins import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

REPLY = "".join(instant.TOKENS)
AUDIO = instant.PIECE * 150
BACK_S = 3.0


@pytest.fixture(scope="module")
def whole_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    workers = {"transport": 2, "stt": 1, "llm": 1, "tts": 2}
    mesh = start_mesh(tmp_path_factory.mktemp("lost"), workers=workers, MESHAG_DRAIN_MS="1500")
    yield mesh
    mesh.stop()


@pytest.fixture
def mesh(whole_mesh: Mesh) -> Iterator[Mesh]:
    mend(whole_mesh)
    yield whole_mesh
    for service in whole_mesh.services:
        service.child.thaw()


def here(mesh: Mesh, caller: TestCaller) -> Service:
    """The transport service that has the call."""
    return next(one for one in mesh.services if one.stage == "transport" and f":{one.port}/" in caller._url)


async def lost(caller: TestCaller) -> None:
    await eventually("the connection is lost", lambda: caller.closed)


async def came_back(caller: TestCaller) -> float:
    """Seconds until the call went on."""
    began_s, before = clock.monotonic_s(), len(caller.events)
    await caller.resume()
    await caller.wait_for("ready", after=before)
    return clock.monotonic_s() - began_s


def history(mesh: Mesh, created: dict[str, Any], caller: TestCaller) -> Any:
    """What is remembered, as the service says that has the call: the others may be dead."""
    url = f"http://127.0.0.1:{here(mesh, caller).port}/sessions/{created['session_id']}/history"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["turns"]


async def heard_once(mesh: Mesh, created: dict[str, Any], caller: TestCaller, *, turns: int = 1) -> None:
    """Every turn was heard and answered once, and is remembered so."""
    for turn in range(1, turns + 1):
        await caller.wait_for("speech_ended", turn=turn, timeout_s=15)
    await eventually("all of the audio", lambda: len(caller.audio) >= turns * len(AUDIO))
    await asyncio.sleep(0.3)
    assert len(caller.audio) == turns * len(AUDIO)
    assert caller.audio == AUDIO * turns
    for kind in ("speech_started", "speech_ended", "turn_ended", "reply_started", "reply_ended"):
        assert [event["turn"] for event in caller.of(kind)] == list(range(1, turns + 1)), kind
    for turn in range(1, turns + 1):
        assert [event["n"] for event in caller.of("reply") if event["turn"] == turn] == [0, 1, 2]
        assert caller.reply(turn) == REPLY
    assert caller.of("error") == []
    questions = [f"Where is my order number {turn}?" for turn in range(1, turns + 1)]
    assert [event["text"] for event in caller.of("turn_ended")] == questions

    def remembered() -> bool:
        turns = history(mesh, created, caller)
        return [(turn["user"], turn["reply"]) for turn in turns] == [(one, REPLY) for one in questions]

    await eventually("the history is whole", remembered)


@pytest.mark.parametrize("after_s", [0.0, 1.5])
async def test_killed_while_the_agent_speaks(mesh: Mesh, after_s: float) -> None:
    created = create(mesh, slow(llm=20, tts=20))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await asyncio.sleep(after_s)
        victim = here(mesh, caller)
        victim.child.send(signal.SIGKILL)
        await lost(caller)
        assert await came_back(caller) < BACK_S
        assert here(mesh, caller) is not victim
        await caller.wait_for("speech_ended", turn=1)
        await ask(caller, 2)
        await heard_once(mesh, created, caller, turns=2)


async def test_killed_while_the_caller_speaks(mesh: Mesh) -> None:
    created = create(mesh, slow())
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
        speaking = asyncio.create_task(ask(caller, 2, frames=60))
        await caller.wait_for("voice_started", turn=2)
        here(mesh, caller).child.send(signal.SIGKILL)
        await lost(caller)
        await asyncio.sleep(0.3)  # what is said meanwhile waits
        assert await came_back(caller) < BACK_S
        await speaking
        await caller.wait_for("speech_ended", turn=2)
        await heard_once(mesh, created, caller, turns=2)


async def test_what_was_said_while_nobody_was_connected_is_told_and_heard(mesh: Mesh) -> None:
    created = create(mesh, slow(llm=40))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("reply_started", turn=1)
        here(mesh, caller).child.send(signal.SIGKILL)
        await lost(caller)
        await asyncio.sleep(2)  # the whole answer is given meanwhile
        await came_back(caller)
        await heard_once(mesh, created, caller)


async def test_who_does_not_come_back_with_an_account_goes_on_where_its_audio_stopped(mesh: Mesh) -> None:
    """It joins as at first: nothing of the answer is skipped, a blink of it may be heard again."""
    created = create(mesh, slow(llm=20, tts=20))
    async with join(created) as first:
        talking = asyncio.create_task(first.speak(*[instant.SILENCE] * 400))
        await ask(first, 1)
        await first.wait_for("speech_started", turn=1)
        await asyncio.sleep(1)
        here(mesh, first).child.send(signal.SIGKILL)
        await lost(first)
        talking.cancel()
        url = first.addresses[0]
        async with TestCaller(url, created["token"]) as second:
            await second.wait_for("speech_ended", turn=1)
            await eventually("the rest", lambda: len(first.audio) + len(second.audio) >= len(AUDIO))
            await asyncio.sleep(0.3)
            twice_ms = (len(first.audio) + len(second.audio) - len(AUDIO)) / 48
            assert 0 <= twice_ms <= 200
            assert AUDIO.endswith(second.audio)
            assert second.of("reply") == []


async def test_what_was_interrupted_while_nobody_was_connected_stays_so(mesh: Mesh) -> None:
    created = create(mesh, slow(llm=20, tts=20))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await asyncio.sleep(1)
        here(mesh, caller).child.send(signal.SIGKILL)
        await lost(caller)
        heard_s = len(caller.audio) / 48_000
        await interrupt(mesh, created, 1)
        await came_back(caller)
        ended = await caller.wait_for("speech_ended", turn=1)
        assert ended["interrupted"] is True
        heard_bytes = len(caller.audio)
        await ask(caller, 2)
        await caller.wait_for("speech_ended", turn=2)
        await eventually("the other answer", lambda: len(caller.audio) >= heard_bytes + len(AUDIO))

        def remembered() -> list[dict[str, Any]]:
            turns: list[dict[str, Any]] = history(mesh, created, caller)
            return turns if len(turns) == 2 else []

        first, second = await eventually("both turns are remembered", remembered)
        assert first["interrupted"] is True
        words = len(REPLY.split()) * heard_s / 3
        assert abs(len(first["reply"].split()) - words) <= 4
        assert second["reply"] == REPLY


async def test_a_frozen_transport_is_left_and_says_nothing_when_it_wakes(mesh: Mesh) -> None:
    created = create(mesh, slow(llm=20, tts=20))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await asyncio.sleep(0.5)
        victim = here(mesh, caller)
        victim.child.freeze()
        await asyncio.sleep(0.5)
        assert await came_back(caller) < BACK_S
        victim.child.thaw()
        await caller.wait_for("speech_ended", turn=1)
        await ask(caller, 2)
        await heard_once(mesh, created, caller, turns=2)


async def interrupt(mesh: Mesh, created: dict[str, Any], turn: int) -> None:
    """As stt does when the caller speaks."""
    assert mesh.servers is not None
    bus = await Bus.connect(mesh.servers.nats_url, name="test")
    frame = Interrupt(turn=turn, source="stt", epoch=1, seq=1_000, at_ns=clock.wall_ns())
    await bus.publish(subjects.control(SessionId(created["session_id"])), encode(frame))
    await asyncio.sleep(0.2)
    await bus.close()
