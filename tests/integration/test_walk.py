"""docs/walk.md against what runs: a turn in this process, with every function of the page watched."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bench import instant
from meshag import subjects
from meshag.api.serve import maker
from meshag.audio import read_wav
from meshag.bus.journal import Journal
from meshag.connectors.contracts import Caller
from meshag.connectors.registry import Registry
from meshag.embedded.servers import EmbeddedServers
from meshag.ids import new_session_id
from meshag.sessions.config import SessionRequest
from meshag.settings import Settings
from meshag.stages.transport import Switchboard
from meshag.stages.worker import Worker

pytestmark = [pytest.mark.integration, pytest.mark.models]

PAGE = Path(__file__).parents[2] / "docs" / "walk.md"
QUESTION = Path(__file__).parents[2] / "src" / "meshag" / "data" / "speech" / "question.wav"


class QuietCaller(Caller):
    """Listens and says nothing."""

    rate_hz = 24_000

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.audio = bytearray()

    def send_audio(self, pcm: bytes) -> None:
        self.audio += pcm

    def send_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "speech_ended":
            self.over.set()

    def drop_audio(self) -> None:
        pass

    async def close(self, code: int, reason: str) -> None:
        pass


def read_page() -> tuple[list[str], list[tuple[str, str]]]:
    """The functions in order, and the frames with their subjects in order."""
    block = re.search(r"```walk\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block is not None
    lines = block.group(1).splitlines()
    functions = [match.group(1) for line in lines if (match := re.match(r"\w+ +(\w+\.\w+)", line))]
    frames = [(match.group(1), match.group(2)) for line in lines if (match := re.search(r"→ (\w+) +([\w.]+)", line))]
    return functions, frames


@pytest.fixture
async def switchboard(servers: EmbeddedServers) -> AsyncIterator[Switchboard]:
    """All four stages in this process, over the real servers."""
    settings = Settings(nats_url=servers.nats_url, valkey_url=servers.valkey_url, connectors=instant.CONNECTORS)
    workers = [Worker(stage, settings, Registry(settings.connectors), maker(stage)) for stage in subjects.STAGES]
    for worker in workers:
        await worker.connect()
    for worker in workers:
        await worker.open_claims()
    switchboard = Switchboard(workers[0])
    await switchboard.start()
    while any(not workers[0].fleet.workers(stage) for stage in subjects.STAGES):
        await asyncio.sleep(0.02)
    yield switchboard
    await switchboard.aclose()
    for worker in workers:
        await worker.aclose()


async def test_the_page_is_what_runs(switchboard: Switchboard) -> None:
    functions, frames = read_page()
    assert len(functions) > 15, "the page lists the walk"
    ran: dict[str, None] = {}

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "meshag" in frame.f_code.co_filename:
            ran.setdefault(frame.f_code.co_qualname)

    store = switchboard.worker.store
    config = instant.config(turns={"vad": "silero"})
    record = await store.create(new_session_id(), _request(config), 60)
    caller = QuietCaller()
    call = await switchboard.connect(record.id, caller)
    pcm, _ = read_wav(QUESTION)
    sys.setprofile(watch)
    try:
        await call.hear(pcm)
        await call.hear(bytes(2 * 16_000))
        async with asyncio.timeout(20):
            await caller.over.wait()
            while "LlmSession._commit" not in ran:
                await asyncio.sleep(0.01)
    finally:
        sys.setprofile(None)
    for service in ("Call", "SttSession", "LlmSession", "TtsSession"):  # side by side: each in its own order
        listed = [name for name in functions if name.startswith(f"{service}.")]
        assert [name for name in ran if name in listed] == listed
    assert await published(switchboard, record.id) == set(frames)
    await switchboard.disconnect(call)


def _request(config: dict[str, object]) -> SessionRequest:
    return SessionRequest.model_validate({"config": config, "enable_transcription": False})


async def published(switchboard: Switchboard, session: Any) -> set[tuple[str, str]]:
    """Every kind of frame in the session's journal with its subject, ownership and interim ones aside."""
    journal, found = Journal(switchboard.worker.bus), set()
    for pattern in subjects.STREAMS.values():
        for frame in await journal.read(pattern.replace("*", session)):
            if type(frame).__name__ not in ("OwnerChanged", "TextIn"):
                found.add((type(frame).__name__, pattern.removesuffix(".*")))
    return found


def test_every_function_of_the_page_exists() -> None:
    from meshag.stages import llm, stt, transport, tts

    functions, _ = read_page()
    for name in functions:
        owner, _, method = name.partition(".")
        assert any(hasattr(getattr(module, owner, None), method) for module in (llm, stt, transport, tts)), name
