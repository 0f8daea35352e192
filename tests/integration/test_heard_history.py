"""Who types while the agent speaks interrupts it: the history keeps what was heard, not what was generated."""

import asyncio
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ask, call, create, join

pytestmark = pytest.mark.integration

REPLY = "".join(instant.TOKENS)


async def test_typing_into_an_answer_leaves_what_was_heard(mesh: Mesh) -> None:
    created = await asyncio.to_thread(create, mesh)
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await asyncio.sleep(0.3)
        await caller.type("And what is that?")
        await caller.wait_for("speech_ended", turn=2, timeout_s=20)
        body: Any = {"turns": []}
        for _ in range(50):
            _, body = await asyncio.to_thread(call, mesh, "GET", f"/sessions/{created['session_id']}/history")
            if len(body["turns"]) == 2:
                break
            await asyncio.sleep(0.1)
    first, second = body["turns"]
    assert first["interrupted"] is True
    assert REPLY.startswith(first["reply"])
    assert len(first["reply"]) < len(instant.SENTENCES[0])
    assert second["reply"] == REPLY
