"""A WebSocketCaller by itself: what leaves, in which order, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from meshag.connectors.transports.websocket import AUDIO_BOUND_MS, EVENT_BOUND, WebSocketCaller, accept
from meshag.errors import MeshError, OverloadError, SessionError

pytestmark = pytest.mark.integration

Script = Callable[[WebSocketCaller], Awaitable[None]]


class Nobody:
    """A conversation that keeps what it is told."""

    def __init__(self) -> None:
        self.pcm = bytearray()
        self.texts: list[str] = []

    async def hear(self, pcm: bytes) -> None:
        self.pcm += pcm

    async def read(self, text: str) -> None:
        self.texts.append(text)

    def interrupt(self) -> None:
        pass


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client of a server that runs `script` with its caller."""

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = await accept(request, 16_000, 16_000)
        await script(caller)
        await caller.aclose()
        return caller.socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(f"http://127.0.0.1:{port}/") as client:
            yield client
    finally:
        await runner.cleanup()


async def all_of(client: aiohttp.ClientWebSocketResponse) -> list[object]:
    """Everything until the close: event types and lengths of audio."""
    text = aiohttp.WSMsgType.TEXT
    async with asyncio.timeout(10):
        return [message.json()["type"] if message.type is text else len(message.data) async for message in client]


async def test_what_is_said_leaves_in_its_order_and_the_greeting_first() -> None:
    async def script(caller: WebSocketCaller) -> None:
        caller.send_event({"type": "a"})
        caller.send_audio(bytes(640))
        caller.send_event({"type": "b"})
        caller.send_audio(bytes(320))
        caller.greet({"type": "ready"})
        running = asyncio.create_task(caller.run(Nobody()))
        await asyncio.sleep(0.2)
        caller.send_audio(bytes(20))
        caller.send_event({"type": "c"})
        await asyncio.sleep(0.2)
        await caller.close(1000, "over")
        await running

    async with served(script) as client:
        assert await all_of(client) == ["ready", "a", 640, "b", 320, 20, "c"]
        assert client.close_code == 1000


@pytest.mark.parametrize("running", [True, False])
async def test_events_said_just_before_the_close_arrive(running: bool) -> None:
    async def script(caller: WebSocketCaller) -> None:
        run = asyncio.create_task(caller.run(Nobody())) if running else None
        await asyncio.sleep(0.1)
        for _ in range(400):
            caller.send_event({"type": "late", "text": "x" * 500})
        caller.send_audio(bytes(640))
        await caller.close(1000, "over")
        await caller.close(1013, "again")
        caller.send_event({"type": "too late"})
        if run is not None:
            await run

    async with served(script) as client:
        assert await all_of(client) == ["late"] * 400
        assert client.close_code == 1000


async def test_interrupted_audio_does_not_leave_and_its_events_do() -> None:
    async def script(caller: WebSocketCaller) -> None:
        caller.send_audio(bytes(640))
        caller.send_event({"type": "a"})
        caller.send_audio(bytes(640))
        caller.drop_audio()
        caller.send_audio(bytes(100))
        await caller.run(Nobody())

    async with served(script) as client:
        await client.send_str('{"type": "bye"}')
        assert [item for item in await all_of(client) if item != 100] == ["a"]


async def test_audio_that_cannot_leave_is_bounded_the_oldest_first() -> None:
    async def script(caller: WebSocketCaller) -> None:
        for length in (600, *[640] * (AUDIO_BOUND_MS // 20), 620):
            caller.send_audio(bytes(length))
        assert caller.dropped == 2
        running = asyncio.create_task(caller.run(Nobody()))
        await asyncio.sleep(0.3)
        await caller.close(1000, "over")
        await running

    async with served(script) as client:
        assert await all_of(client) == [640] * (AUDIO_BOUND_MS // 20 - 1) + [620]


async def test_events_that_cannot_leave_are_bounded() -> None:
    async def script(caller: WebSocketCaller) -> None:
        for _ in range(EVENT_BOUND + 1):
            caller.send_event({"type": "x"})
        await caller.run(Nobody())

    async with served(script) as client:
        assert await all_of(client) == []
        assert client.close_code == 1013


@pytest.mark.parametrize(
    ("error", "code"), [(SessionError("gone"), 1008), (OverloadError("full"), 1013), (MeshError("broken"), 1011)]
)
async def test_a_refusal_says_why(error: MeshError, code: int) -> None:
    async def script(caller: WebSocketCaller) -> None:
        await caller.refuse(error)

    async with served(script) as client:
        message = await client.receive_json(timeout=10)
        assert (message["type"], message["code"], message["message"]) == ("error", error.code, str(error))
        assert await all_of(client) == []
        assert client.close_code == code


async def test_an_error_of_the_conversation_is_told_and_the_call_goes_on() -> None:
    class Broken(Nobody):
        async def read(self, text: str) -> None:
            raise SessionError("it has ended")

    async def script(caller: WebSocketCaller) -> None:
        await caller.run(Broken())

    async with served(script) as client:
        await client.send_str('{"type": "text", "text": "x"}')
        assert (await client.receive_json(timeout=10))["code"] == "session_not_found"
        await client.send_str('{"type": "bye"}')
        assert await all_of(client) == []
