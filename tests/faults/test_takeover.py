"""Kill anything, keep talking: whoever dies, freezes or leaves, the caller hears the whole answer once."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bench import instant
from meshag import clock, subjects
from meshag.bus.connection import Bus
from meshag.bus.journal import BATCH, Journal
from meshag.embedded.mesh import Mesh
from meshag.errors import WireError
from meshag.frames import AnyFrame, decode
from meshag.ids import SessionId
from meshag.subjects import Stage
from meshag.testing import TestCaller
from meshes import ask, call, create, join, longest_gap_s, mend, owner, slow, start_mesh

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

REPLY = "".join(instant.TOKENS)
AUDIO = instant.PIECE * 150
GAP_S = 0.3
FREEZE_GAP_S = 2.0
"""A frozen worker is noticed by four missed heartbeats: 0.6 s, on a busy machine more."""


@pytest.fixture(scope="module")
def whole_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = start_mesh(tmp_path_factory.mktemp("takeover"))
    yield mesh
    mesh.stop()


@pytest.fixture
def mesh(whole_mesh: Mesh) -> Iterator[Mesh]:
    """Two workers of each stage. Kill what you like: it is whole again before the next test."""
    mend(whole_mesh)
    yield whole_mesh
    for service in whole_mesh.services:
        service.child.thaw()


async def heard_whole(
    mesh: Mesh,
    created: dict[str, Any],
    caller: TestCaller,
    *,
    turns: int = 1,
    gap_s: float = GAP_S,
) -> None:
    """Every turn was heard once and answered once, whole, without a hole, and is remembered so."""
    await spoken(caller, turns)
    questions = [f"Where is my order number {turn}?" for turn in range(1, turns + 1)]
    assert [event["text"] for event in caller.of("turn_ended")] == questions
    for turn in range(1, turns + 1):
        assert [event["n"] for event in caller.of("reply") if event["turn"] == turn] == [0, 1, 2]
        assert caller.reply(turn) == REPLY
    assert len(caller.audio) == turns * 144_000
    assert caller.audio == AUDIO * turns
    assert caller.of("error") == []
    ends = [event["t_ms"] for event in caller.of("speech_ended")]
    assert len(ends) == turns
    assert longest_gap_s(caller, len(AUDIO)) < gap_s
    assert await history(mesh, created, turns) == [(question, REPLY) for question in questions]


async def history(mesh: Mesh, created: dict[str, Any], turns: int) -> list[tuple[str, str]]:
    """What is remembered: it is written a moment after it was heard."""
    for _ in range(50):
        _, body = await asyncio.to_thread(call, mesh, "GET", f"/sessions/{created['session_id']}/history")
        if len(body["turns"]) >= turns:
            break
        await asyncio.sleep(0.1)
    return [(turn["user"], turn["reply"]) for turn in body["turns"]]


async def spoken(caller: TestCaller, turn: int) -> None:
    """The turn has been answered; events may overtake the last of its audio."""
    await caller.wait_for("speech_ended", turn=turn, timeout_s=20)
    for _ in range(100):
        if len(caller.audio) % 144_000 == 0:
            break
        await asyncio.sleep(0.01)


async def took_over(caller: TestCaller, stage: Stage) -> None:
    await caller.wait_for("owner_changed", stage=stage, timeout_s=20)


# -- killed -----------------------------------------------------------------------------------------------------------


async def test_stt_is_killed_in_mid_utterance(mesh: Mesh):
    created = create(mesh, slow(llm=5))
    async with join(created) as caller:
        victim = await owner(mesh, caller, "stt")
        speaking = asyncio.create_task(ask(caller, 1, frames=50))
        await asyncio.sleep(0.5)
        victim.child.send(signal.SIGKILL)
        await speaking
        await took_over(caller, "stt")
        await heard_whole(mesh, created, caller)


async def test_what_was_typed_before_keeps_its_turn(mesh: Mesh):
    created = create(mesh, slow())
    async with join(created) as caller:
        victim = await owner(mesh, caller, "stt")
        await caller.type("Where is my order number 1?")
        await caller.wait_for("speech_ended", turn=1)
        victim.child.send(signal.SIGKILL)
        await took_over(caller, "stt")
        await ask(caller, 2)
        ended = await caller.wait_for("turn_ended", turn=2)
        assert ended["text"] == "Where is my order number 2?"
        await spoken(caller, 2)


async def test_llm_is_killed_in_mid_reply(mesh: Mesh):
    created = create(mesh, slow(llm=30))
    async with join(created) as caller:
        victim = await owner(mesh, caller, "llm")
        await ask(caller, 1)
        await caller.wait_for("reply", turn=1, n=0)
        victim.child.send(signal.SIGKILL)
        await took_over(caller, "llm")
        await heard_whole(mesh, created, caller)


async def test_tts_is_killed_in_mid_sentence(mesh: Mesh):
    created = create(mesh, slow(tts=60))
    async with join(created) as caller:
        victim = await owner(mesh, caller, "tts")
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await asyncio.sleep(0.15)
        victim.child.send(signal.SIGKILL)
        await took_over(caller, "tts")
        await heard_whole(mesh, created, caller)


async def test_the_caller_of_a_second_connection_is_heard_whole_too(mesh: Mesh):
    """Each connection numbers its audio anew."""
    created = create(mesh)
    async with join(created) as caller:
        await ask(caller, 1, frames=120)
        await spoken(caller, 1)
    async with join(created) as caller:
        victim = await owner(mesh, caller, "stt")
        speaking = asyncio.create_task(ask(caller, 2, frames=50))
        await asyncio.sleep(0.5)
        victim.child.send(signal.SIGKILL)
        await speaking
        await spoken(caller, 2)
        assert [event["text"] for event in caller.of("turn_ended")] == ["Where is my order number 2?"]
        assert caller.audio == AUDIO


async def test_one_after_the_other_is_killed_in_one_call(mesh: Mesh):
    created = create(mesh, slow(llm=20, tts=40))
    stages: tuple[Stage, ...] = ("tts", "stt", "llm")
    async with join(created) as caller:
        for turn, stage in enumerate(stages, 1):
            victim = await owner(mesh, caller, stage)
            await ask(caller, turn)
            await caller.wait_for("reply", turn=turn, n=1)
            victim.child.send(signal.SIGKILL)
            await took_over(caller, stage)
            await spoken(caller, turn)
        await heard_whole(mesh, created, caller, turns=3)


async def test_ten_sessions_of_a_dead_worker_are_taken_over_by_its_peers(mesh: Mesh):
    made = [create(mesh, slow(llm=20)) for _ in range(10)]
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(join(one)) for one in made]
        owners = [await owner(mesh, caller, "llm") for caller in callers]
        victim = owners[0]
        await asyncio.gather(*(ask(caller, 1) for caller in callers))
        victim.child.send(signal.SIGKILL)
        for one, caller, first in zip(made, callers, owners, strict=True):
            if first is victim:
                await took_over(caller, "llm")
            await heard_whole(mesh, one, caller, gap_s=1)


async def test_the_only_worker_of_a_stage_is_started_again_and_the_call_goes_on(
    mesh: Mesh,
):
    created = create(mesh, slow(llm=20))
    async with join(created) as caller:
        await ask(caller, 1)
        await spoken(caller, 1)
        both = [service for service in mesh.services if service.stage == "llm"]
        for service in both:
            service.child.send(signal.SIGKILL)
        await ask(caller, 2)
        mend(mesh)
        assert mesh.restarts >= 2
        await took_over(caller, "llm")
        await spoken(caller, 2)
        assert caller.reply(2) == REPLY
        assert caller.audio == AUDIO * 2


# -- frozen, and awake again ------------------------------------------------------------------------------------------


async def stored(bus: Bus, subject: str) -> list[AnyFrame]:
    """All frames of a subject as they were stored, those of replaced owners too."""
    read = await Journal(bus)._get(subject, {"seq": 1, "next_by_subj": subject, "batch": BATCH})
    frames = []
    for payload in read.payloads:
        try:
            frames.append(decode(payload))
        except WireError:
            continue
    return frames


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
async def test_a_frozen_worker_is_replaced_and_says_nothing_when_it_wakes(mesh: Mesh, stage: Stage):
    created = create(mesh, slow(llm=20, tts=40))
    session = SessionId(created["session_id"])
    assert mesh.servers is not None
    bus = await Bus.connect(mesh.servers.nats_url, name="test")
    async with join(created) as caller:
        victim = await owner(mesh, caller, stage)
        speaking = asyncio.create_task(ask(caller, 1, frames=30))
        if stage == "stt":
            await caller.wait_for("voice_started", turn=1)
        elif stage == "llm":
            await caller.wait_for("reply", turn=1, n=0)
        else:
            await caller.wait_for("speech_started", turn=1)
        victim.child.freeze()
        froze = clock.monotonic_s()
        await took_over(caller, stage)
        noticed_s = clock.monotonic_s() - froze
        await asyncio.sleep(max(0, 2 - noticed_s))
        victim.child.thaw()
        await speaking
        await heard_whole(mesh, created, caller, gap_s=FREEZE_GAP_S)
        await asyncio.sleep(0.3)
        epochs = [frame.epoch for frame in await stored(bus, subjects.output(stage, session))]
        assert epochs == sorted(epochs)
        assert epochs[-1] == 2
        assert noticed_s < 3
        await ask(caller, 2)
        await spoken(caller, 2)
        assert caller.reply(2) == REPLY
        body = await asyncio.to_thread(mesh._ready_body, victim)
        assert body["ready"] is True
    await bus.close()


# -- asked to leave ---------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_told_to_end_hands_over_and_ends(mesh: Mesh):
    created = create(mesh, slow(llm=20))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("reply", turn=1, n=0)
        victims = [await owner(mesh, caller, stage) for stage in ("stt", "llm", "tts")]
        for victim in victims:
            victim.child.send(signal.SIGTERM)
        codes = await asyncio.gather(*(asyncio.to_thread(victim.child.wait, 20) for victim in victims))
        assert codes == [0, 0, 0]
        await spoken(caller, 1)  # the answer that was on its way when they left
        await ask(caller, 2)
        await heard_whole(mesh, created, caller, turns=2)
        assert {event["stage"] for event in caller.of("owner_changed")} == {
            "stt",
            "llm",
            "tts",
        }


# -- the servers ------------------------------------------------------------------------------------------------------


async def test_a_live_call_does_not_notice_that_valkey_is_gone(mesh: Mesh):
    assert mesh.servers is not None
    created = create(mesh, slow(llm=10))
    async with join(created) as caller:
        await caller.wait_for("ready")
        mesh.servers.kill_valkey()
        try:
            began = clock.monotonic_s()
            await ask(caller, 1)
            await spoken(caller, 1)
            assert caller.audio == AUDIO
            assert longest_gap_s(caller, len(AUDIO)) < GAP_S
            await asyncio.sleep(max(0, 3 - (clock.monotonic_s() - began)))
        finally:
            mesh.servers.restart_valkey()
        await ask(caller, 2)
        await spoken(caller, 2)
        assert caller.audio == AUDIO * 2
        assert caller.of("error") == []
        questions = ["Where is my order number 1?", "Where is my order number 2?"]  # written when it can be
        assert await history(mesh, created, 2) == [(question, REPLY) for question in questions]


async def test_nats_is_killed_in_the_middle_of_an_answer(mesh: Mesh):
    assert mesh.servers is not None
    created = create(mesh, slow(llm=20, tts=40))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("reply", turn=1, n=0)
        await asyncio.sleep(0.2)
        mesh.servers.kill_nats()
        await asyncio.sleep(0.5)
        mesh.servers.restart_nats()
        await spoken(caller, 1)
        await asyncio.sleep(0.5)
        await ask(caller, 2)
        await heard_whole(mesh, created, caller, turns=2, gap_s=4)
