"""The agent in a Daily room when its transport worker dies or drains: another joins, and the talk goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daily_rooms import DailyInThread, RoomCaller, create
from meshag.embedded.mesh import Mesh
from meshes import start_mesh
from standins import eventually

pytestmark = pytest.mark.faults


@pytest.fixture
def daily() -> Iterator[DailyInThread]:
    with DailyInThread() as daily:
        yield daily


@pytest.fixture
def mesh(daily: DailyInThread, tmp_path: Path) -> Iterator[Mesh]:
    workers = {"transport": 2, "stt": 1, "llm": 1, "tts": 1}
    mesh = start_mesh(tmp_path, workers=workers, **daily.env(), MESHAG_DRAIN_MS="3000")
    yield mesh
    mesh.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_another_agent_comes(daily: DailyInThread, mesh: Mesh, how: signal.Signals) -> None:
    created = create(mesh, max_participants=4)
    async with RoomCaller(daily.vendor.url, created) as caller:
        (first,) = await eventually("the agent is there", lambda: daily.agents(created))
        await caller.ask(1)
        turn = (await caller.wait_for("turn_ended"))["turn"]
        await caller.wait_for("speech_ended", turn=turn)
        mesh.find("transport").child.send(how)

        def another() -> bool:
            agents = daily.agents(created)
            return len(agents) == 1 and agents[0] != first

        await eventually("another agent is there, alone", another)
        await caller.ask(2)
        heard = await caller.wait_for("turn_ended", text="Where is my order number 2?")
        assert heard["turn"] > turn  # it goes on counting
        spoken = len(caller.audio)
        await caller.wait_for("speech_ended", turn=heard["turn"], interrupted=False)
        assert len(caller.audio) > spoken
        assert "session_ended" not in [event["type"] for event in caller.events]
