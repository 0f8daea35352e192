"""The walk of a turn through four processes, two servers and a WebSocket."""

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ask, call, create, join

pytestmark = pytest.mark.integration

REPLY = "".join(instant.TOKENS)


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
    _, body = call(mesh, "GET", f"/sessions/{created['session_id']}/history")
    assert [(turn["turn"], turn["user"], turn["reply"]) for turn in body["turns"]] == [
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
    _, body = call(mesh, "GET", f"/sessions/{created['session_id']}/history")
    first, second = body["turns"]
    assert first["interrupted"] is True
    assert first["reply"].startswith(instant.SENTENCES[0].strip())
    assert len(first["reply"]) < len(instant.SENTENCES[0] + instant.SENTENCES[1])
    assert second["reply"] == REPLY
