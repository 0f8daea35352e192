"""What the API has made the agent say, and what was counted, when a worker dies meanwhile."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshag.testing import TestCaller
from meshes import ask, call, create, join, owner, start_mesh
from standins import eventually

pytestmark = pytest.mark.faults

TEXT = "".join(instant.TOKENS)
"""Three sentences: three chunks, and three seconds."""

AUDIO = instant.PIECE * 150


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """Workers to kill: two of llm, one of tts."""
    mesh = start_mesh(tmp_path, workers={"stt": 1, "llm": 3, "tts": 2})
    yield mesh
    mesh.stop()


async def told(mesh: Mesh, method: str, where: str, body: Any = None) -> Any:
    status, answer = await asyncio.to_thread(call, mesh, method, where, body)
    assert status in (200, 202), answer
    return answer


async def heard(caller: TestCaller, turn: int) -> None:
    await caller.wait_for("speech_ended", turn=turn, interrupted=False, timeout_s=20)
    await eventually("all of the audio", lambda: len(caller.audio) >= turn * len(AUDIO))


async def test_what_is_being_said_is_said_to_its_end_once_and_counted_once(own_mesh: Mesh) -> None:
    created = create(own_mesh)
    where = f"/sessions/{created['session_id']}"
    async with join(created) as caller:
        for turn, stage in enumerate(("llm", "tts"), 1):
            victim = await owner(own_mesh, caller, stage)  # type: ignore[arg-type]
            await told(own_mesh, "POST", f"{where}/say", {"text": TEXT})
            await caller.wait_for("speech_started", turn=turn)
            victim.child.send(signal.SIGKILL)
            await caller.wait_for("owner_changed", stage=stage, timeout_s=20)
            await heard(caller, turn)
            assert caller.reply(turn) == TEXT
        assert caller.audio == AUDIO * 2
        await ask(caller, 3)
        await heard(caller, 3)
        before = (await told(own_mesh, "GET", where))["usage"]
        victim = await owner(own_mesh, caller, "llm")
        victim.child.send(signal.SIGKILL)
        await caller.wait_for("owner_changed", stage="llm", epoch=3, timeout_s=20)
        await ask(caller, 4)
        await heard(caller, 4)

        async def counted() -> Any:
            found = (await told(own_mesh, "GET", where))["usage"]
            return found if found["llm"]["instant"]["output_tokens"] == 2 * len(instant.TOKENS) else None

        after = await eventually("the turn is counted", counted)
    assert before["llm"]["instant"]["output_tokens"] == len(instant.TOKENS)
    spoken = after["tts"]["instant"]["characters"]
    assert 3 * len(TEXT) - 12 <= spoken <= 4 * len(TEXT)  # the turn in which tts died may be counted in part
    assert after["stt"]["instant"]["audio_ms"] == 2 * 7 * 20
    _, history = await asyncio.to_thread(call, own_mesh, "GET", f"{where}/history")
    assert [(one["user"], one["reply"]) for one in history["turns"]][:2] == [("", TEXT), ("", TEXT)]
