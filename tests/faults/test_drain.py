"""Workers that are told to leave, over the API and by `meshag drain`: their calls go on, and nobody hears it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bench import instant
from meshag import clock
from meshag.embedded.mesh import Mesh
from meshag.subjects import STAGES, Stage
from meshag.testing import TestCaller
from meshes import ask, call, create, longest_gap_s, slow, start_mesh
from standins import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

REPLY = "".join(instant.TOKENS)
AUDIO = instant.PIECE * 150
GAP_S = 0.3
QUIET_S = 0.1
"""Between two tests, or turns: for what is still on its way."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    workers: dict[Stage, int] = {"transport": 2, "stt": 2, "llm": 2, "tts": 2}
    mesh = start_mesh(tmp_path_factory.mktemp("drain"), workers=workers, MESHAG_DRAIN_MS="1000")
    yield mesh
    mesh.stop()


async def workers(mesh: Mesh, stage: Stage) -> list[dict[str, Any]]:
    status, body = await asyncio.to_thread(call, mesh, "GET", "/workers")
    assert status == 200
    return [one for one in body["workers"] if one["stage"] == stage]


async def heard_once(caller: TestCaller, turns: int) -> None:
    """Every turn was heard and answered once, whole, without a hole."""
    for turn in range(1, turns + 1):
        await caller.wait_for("speech_ended", turn=turn, timeout_s=20)
    await eventually("all of the audio", lambda: len(caller.audio) >= turns * len(AUDIO))
    await asyncio.sleep(QUIET_S)
    assert len(caller.audio) == turns * len(AUDIO)
    assert caller.audio == AUDIO * turns
    for kind in ("turn_ended", "reply_ended", "speech_started", "speech_ended"):
        assert [event["turn"] for event in caller.of(kind)] == list(range(1, turns + 1)), kind
    questions = [f"Where is my order number {turn}?" for turn in range(1, turns + 1)]
    assert [event["text"] for event in caller.of("turn_ended")] == questions
    assert caller.of("error") == []


def tended(mesh: Mesh, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command while the mesh starts again what ends, as `meshag up` does."""
    running = subprocess.Popen(
        [sys.executable, "-m", "meshag", *command, "--url", mesh.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until_s = clock.monotonic_s() + 80
    while running.poll() is None and clock.monotonic_s() < until_s:
        mesh.tend()
        clock.sleep_s(0.1)
    running.kill()
    said, _ = running.communicate()
    return subprocess.CompletedProcess(command, running.returncode, said)


async def test_a_worker_that_is_not_there_cannot_be_drained(mesh: Mesh) -> None:
    for worker in ("a" * 13, "nonsense", "*"):
        status, problem = await asyncio.to_thread(call, mesh, "POST", f"/workers/{worker}/drain")
        assert (status, problem["code"]) == (404, "worker_not_found")


@pytest.mark.parametrize("stage", ["stt", "llm", "tts", "transport"])
async def test_a_drained_worker_s_call_goes_on_without_a_gap(mesh: Mesh, stage: Stage) -> None:
    created = create(mesh, slow(llm=20, tts=20))
    async with TestCaller(created["room_url"], created["token"], comes_back=True) as caller:
        ready = await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        if stage == "transport":
            (worker,) = [one["worker"] for one in await workers(mesh, stage) if one["sessions"] == 1]
        else:
            worker = ready["owners"][stage]
        status, told = await asyncio.to_thread(call, mesh, "POST", f"/workers/{worker}/drain")
        assert (status, told["worker"], told["draining"]) == (202, worker, True)
        await caller.wait_for("speech_ended", turn=1, timeout_s=20)
        if stage == "transport":
            await eventually("the caller has come back", lambda: caller.resumed == 1)
        else:
            await caller.wait_for("owner_changed", stage=stage, timeout_s=20)
        await ask(caller, 2)
        await heard_once(caller, 2)
        print(f"{stage}: longest gap {longest_gap_s(caller, len(AUDIO)) * 1000:.0f} ms")
        assert longest_gap_s(caller, len(AUDIO)) < GAP_S


def mend(mesh: Mesh) -> None:
    until_s = clock.monotonic_s() + 60
    while True:
        mesh.tend()
        if all(service.child.poll() is None and mesh.is_ready(service) for service in mesh.services):
            return
        assert clock.monotonic_s() < until_s
        clock.sleep_s(0.1)


@pytest.mark.xfail(reason="on a busy machine a turn in which stt changes hands twice is now and then not answered")
async def test_every_stage_is_restarted_under_live_calls(mesh: Mesh) -> None:
    await asyncio.to_thread(mend, mesh)
    before = {stage: {one["worker"] for one in await workers(mesh, stage)} for stage in STAGES}
    made = [create(mesh, slow(llm=20, tts=20)) for _ in range(3)]
    callers = [TestCaller(one["room_url"], one["token"], comes_back=True) for one in made]
    over = asyncio.Event()

    async def talk(caller: TestCaller) -> int:
        turn = 0
        async with caller:
            while not over.is_set() or turn < 2:
                turn += 1
                await ask(caller, turn)
                await caller.wait_for("speech_ended", turn=turn, timeout_s=30)
            await heard_once(caller, turn)
            assert longest_gap_s(caller, len(AUDIO)) < GAP_S
        return turn

    talking = [asyncio.create_task(talk(caller)) for caller in callers]
    try:
        for stage in STAGES:
            done = await asyncio.to_thread(tended, mesh, "drain", stage)
            assert done.returncode == 0, done.stdout
            assert done.stdout.count("has left after") == 2
            assert before[stage].isdisjoint({one["worker"] for one in await workers(mesh, stage)})
    finally:
        over.set()
        turns = await asyncio.gather(*talking, return_exceptions=True)
    assert all(isinstance(count, int) and count >= 2 for count in turns), turns
    assert all(caller.resumed >= 1 for caller in callers)
