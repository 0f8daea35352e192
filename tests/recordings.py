"""Recorded conversations on the instant providers, and how tests/data/recordings was made.

    python tests/recordings.py tests/data/recordings/takeovers.mesh

A question, an interrupted answer, a typed question, then one for each stage whose owner is killed in mid-turn.
"""

import asyncio
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from meshag import clock
from meshag.embedded.mesh import Mesh
from meshag.ids import SessionId
from meshag.recording.file import Header, Writer
from meshag.recording.recorder import record
from meshag.subjects import Stage
from meshag.testing import TestCaller
from meshes import ask, call, create, join, owner, slow, start_mesh

RECORDINGS = Path(__file__).parent / "data" / "recordings"


async def chat(caller: TestCaller) -> None:
    """Three turns: one to its end, one interrupted, one typed."""
    await ask(caller, 1)
    await caller.wait_for("speech_ended", turn=1)
    await ask(caller, 2)
    await caller.wait_for("speech_started", turn=2)
    await asyncio.sleep(0.7)
    await caller.send({"type": "interrupt"})
    await caller.wait_for("speech_ended", turn=2)
    await caller.type("And where is it now?")
    await caller.wait_for("speech_ended", turn=3)


async def killed(mesh: Mesh, caller: TestCaller, first_turn: int, after_s: float = 0.15) -> None:
    """A turn for each stage, in which its owner is killed."""
    stages: tuple[Stage, ...] = ("stt", "llm", "tts")
    sign = {"stt": "voice_started", "llm": "reply", "tts": "speech_started"}
    for turn, stage in enumerate(stages, first_turn):
        asking = asyncio.create_task(ask(caller, turn, frames=30))
        await caller.wait_for(sign[stage], turn=turn, timeout_s=20)
        await asyncio.sleep(after_s)
        (await owner(mesh, caller, stage)).child.kill()
        await asking
        await caller.wait_for("speech_ended", turn=turn, timeout_s=30)


async def recorded(mesh: Mesh, path: Path, *, kill: bool, after_s: float = 0.15) -> str:
    """A conversation, followed from its beginning to its end. Returns the session's id."""
    created = await asyncio.to_thread(create, mesh, slow(llm=30, tts=60) if kill else None)
    session = SessionId(created["session_id"])
    with path.open("wb") as file:
        writer = Writer(file, Header(session, recorded_at_ns=clock.wall_ns(), followed=True))
        servers, stop = mesh.servers, asyncio.Event()
        following = asyncio.create_task(record(servers.nats_url, servers.valkey_url, session, writer, stop=stop))
        while not writer.frames:  # it hears
            assert not following.done(), following.result()
            await asyncio.sleep(0.02)
        async with join(created) as caller:
            await caller.wait_for("ready")
            await chat(caller)
            if kill:
                await killed(mesh, caller, 4, after_s)
            await asyncio.sleep(0.7)  # the history is written a moment later
            await asyncio.to_thread(call, mesh, "DELETE", f"/sessions/{session}")
        reason, missed = await asyncio.wait_for(following, 20)
        assert (reason, missed) == ("ended", 0)
        writer.close(reason)
    return session


if __name__ == "__main__":
    made = start_mesh(Path(tempfile.mkdtemp()))
    try:
        with suppress(FileExistsError):
            RECORDINGS.mkdir()
        asyncio.run(recorded(made, Path(sys.argv[1]), kill=True))
    finally:
        made.stop()
