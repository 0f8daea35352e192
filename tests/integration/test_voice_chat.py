"""The walk of a turn through four processes, two servers and a WebSocket."""

from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ask, call, create, join
from standins import eventually

pytestmark = pytest.mark.integration

REPLY = "".join(instant.TOKENS)


async def remembered(mesh: Mesh, created: dict[str, Any], turns: int) -> list[dict[str, Any]]:
    """The history once it has this many turns: it is written while the caller is already told."""
    path = f"/sessions/{created['session_id']}/history"

    def enough() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(mesh, "GET", path)[1]["turns"]
        return found if len(found) >= turns else []

    found: list[dict[str, Any]] = await eventually(f"{turns} turns are remembered", enough)
    return found


async def test_a_spoken_question_is_heard_answered_and_spoken(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await ask(caller, 7)
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
    kinds = caller.kinds()
    order = ["ready", "voice_started", "transcript", "turn_ended", "reply_started", "reply", "reply_ended"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order
    assert caller.of("turn_ended")[0]["text"] == "Where is my order number 7?"
    assert caller.reply(1) == REPLY
    assert len(caller.audio) == 3 * 2 * 24_000
    assert caller.audio == instant.PIECE * 150


async def test_the_history_keeps_what_was_said(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
        await ask(caller, 2)
        await caller.wait_for("speech_ended", turn=2)
    assert [(turn["turn"], turn["user"], turn["reply"]) for turn in await remembered(mesh, created, 2)] == [
        (1, "Where is my order number 1?", REPLY),
        (2, "Where is my order number 2?", REPLY),
    ]


async def test_speaking_over_the_agent_silences_it_and_the_history_keeps_what_was_heard(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await caller.speak(*[instant.SILENCE] * 60)  # 1.2 s of listening: one sentence and a bit
        await ask(caller, 2)
        ended = await caller.wait_for("speech_ended", turn=1)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
    assert ended["interrupted"] is True
    first, second = await remembered(mesh, created, 2)
    assert first["interrupted"] is True
    assert first["reply"].startswith(instant.SENTENCES[0].strip())
    assert len(first["reply"]) < len(instant.SENTENCES[0] + instant.SENTENCES[1])
    assert second["reply"] == REPLY
