"""What the caller says while nobody owns stt is heard whole, and what was heard is not heard again."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from bench import instant
from faults.chaos.providers import CONNECTORS, config, question, speech
from meshag import clock
from meshag.embedded.mesh import Mesh
from meshag.testing import TestCaller
from meshes import ROOT, create, join, logs, start_mesh

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """On a recogniser that understands only what it has heard every frame of, once."""
    mesh = start_mesh(
        tmp_path_factory.mktemp("heard"),
        workers={"llm": 1, "tts": 1},
        MESHAG_CONNECTORS=CONNECTORS,
        PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    )
    yield mesh
    mesh.stop()


async def mended(mesh: Mesh) -> None:
    deadline_s = clock.monotonic_s() + 60
    while True:
        mesh.tend()
        ready = [await asyncio.to_thread(mesh.is_ready, service) for service in mesh.services]
        if all(ready) and all(service.child.poll() is None for service in mesh.services):
            return
        assert clock.monotonic_s() < deadline_s, logs(mesh)
        await asyncio.sleep(0.1)


async def answered(caller: TestCaller, number: int) -> int:
    """The turn of the question, once its answer has been heard."""
    ended = await caller.wait_for("turn_ended", text=question(number), timeout_s=30)
    await caller.wait_for("speech_ended", turn=ended["turn"], timeout_s=30)
    return int(ended["turn"])


async def test_a_question_that_is_begun_while_stt_is_away_is_heard_from_its_beginning(mesh: Mesh) -> None:
    await mended(mesh)
    created: dict[str, Any] = await asyncio.to_thread(create, mesh, config())
    async with join(created) as caller:
        await caller.speak(*speech(1, 10))
        await answered(caller, 1)
        for service in mesh.services:
            if service.stage == "stt":
                service.child.kill()
        # The beginning is further back than the second that a takeover hears in any case.
        await caller.speak(*speech(2, 10), *[instant.SILENCE] * 100)
        await mended(mesh)
        await answered(caller, 2)
        assert [event["text"] for event in caller.of("turn_ended")] == [question(1), question(2)]


async def test_what_is_sent_again_after_a_reconnect_is_not_heard_again_by_a_new_owner(mesh: Mesh) -> None:
    assert mesh.servers is not None
    await mended(mesh)
    created: dict[str, Any] = await asyncio.to_thread(create, mesh, config())
    async with join(created) as caller:
        owners = (await caller.wait_for("ready"))["owners"]
        await caller.speak(*speech(1, 10))
        await caller.wait_for("turn_ended", text=question(1))
        victim = next(s for s in mesh.services if mesh._ready_body(s).get("worker") == owners["stt"])
        victim.child.kill()
        await caller.wait_for("owner_changed", stage="stt", timeout_s=20)
        mesh.servers.kill_nats()
        mesh.servers.restart_nats()
        await answered(caller, 1)
        await asyncio.sleep(1)
        await caller.speak(*speech(2, 10))
        await answered(caller, 2)
        assert [event["text"] for event in caller.of("turn_ended")] == [question(1), question(2)]


async def test_a_caller_who_is_held_up_in_mid_question_is_heard_whole(mesh: Mesh) -> None:
    """The journal holds the question's beginning much longer ago than its frames have taken to speak."""
    await mended(mesh)
    created: dict[str, Any] = await asyncio.to_thread(create, mesh, config())
    async with join(created) as caller:
        owners = (await caller.wait_for("ready"))["owners"]
        said = speech(1, 20)
        await caller.speak(*said[:10])
        await caller.wait_for("voice_started", turn=1)
        await asyncio.sleep(2.5)
        victim = next(s for s in mesh.services if mesh._ready_body(s).get("worker") == owners["stt"])
        await caller.speak(*said[10:-1])
        victim.child.kill()
        await caller.wait_for("owner_changed", stage="stt", timeout_s=20)
        await caller.speak(said[-1])
        await answered(caller, 1)
        assert [event["text"] for event in caller.of("turn_ended")] == [question(1)]
