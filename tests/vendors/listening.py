"""What the tests of every vendor's recogniser do: feed it, and wait for what it hears."""

import asyncio
import random
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from meshag.audio import FRAME_BYTES
from meshag.connectors.contracts import Heard, SttConnector, SttStream
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from vendors.fuzz import odd_bytes, odd_json

PATIENCE_S = 8.0
"""A busy machine is slow; nothing waits for so long when all is well."""

FAULTS: list[tuple[dict[str, Any], type[ConnectorError], str]] = [
    ({"status": 400}, ProviderRejected, "provider_rejected"),
    ({"status": 401}, ProviderRejected, "provider_unauthorized"),
    ({"status": 402}, ProviderRejected, "provider_unauthorized"),
    ({"status": 403}, ProviderRejected, "provider_unauthorized"),
    ({"status": 404}, ProviderRejected, "provider_rejected"),
    ({"status": 429}, ProviderLimited, "provider_limited"),
    ({"status": 500}, ProviderUnavailable, "provider_unavailable"),
    ({"status": 503}, ProviderUnavailable, "provider_unavailable"),
    ({"refuse": True}, ProviderUnavailable, "provider_unavailable"),
    *[
        ({"garbage": kind}, ProviderGarbage, "provider_garbage")
        for kind in ("binary", "json", "html", "nan", "types", "long_line", "empty")
    ],
]
"""What goes wrong in the same way with every vendor: what is done, what it means, and its code."""

SILENCES = pytest.mark.parametrize(
    "faults", [{"mute": True}, {"headers_only": True}, {"silent_after": 0}, {"drip_s": 0.02}], ids=str
)
"""How a vendor may say nothing."""


def feed(stream: SttStream, pcm: bytes, step: int = FRAME_BYTES) -> None:
    """As the stage does: frame by frame."""
    for at in range(0, len(pcm), step):
        stream.feed(pcm[at : at + step])


@asynccontextmanager
async def opened(connector: SttConnector, **options: Any) -> AsyncIterator[SttStream]:
    """A stream, closed at the end."""
    stream = await connector.open(connector.options(**options))
    try:
        yield stream
    finally:
        await stream.aclose()


async def until(stream: SttStream, wanted: Callable[[list[Heard]], bool]) -> list[Heard]:
    """What is heard until `wanted` says that it is enough."""
    found: list[Heard] = []
    async with asyncio.timeout(PATIENCE_S):
        async for heard in stream.heard():
            found.append(heard)
            if wanted(found):
                break
    return found


async def finals(stream: SttStream, count: int = 1) -> list[str]:
    """The next finals."""
    found = await until(stream, lambda heard: sum(one.final for one in heard) == count)
    return [heard.text for heard in found if heard.final]


async def failure_of(connector: SttConnector, pcm: bytes, **options: Any) -> ConnectorError:
    """How an utterance fails."""
    try:
        async with opened(connector, **options) as stream:
            feed(stream, pcm)
            stream.finish()
            async with asyncio.timeout(PATIENCE_S):
                async for heard in stream.heard():
                    assert not heard.final, heard
    except ConnectorError as error:
        return error
    raise AssertionError("it ended without an error")


def most_memory_mb() -> float:
    """The most that this process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)


async def silence_of(connector: SttConnector, pcm: bytes, within_s: float = 0.12, **options: Any) -> list[Heard]:
    """What is heard of an utterance by a vendor that never comes to its end; opening it may be where it hangs."""
    found: list[Heard] = []

    async def listen() -> None:
        async with opened(connector, **options) as stream:
            feed(stream, pcm)
            stream.finish()
            async for heard in stream.heard():
                found.append(heard)  # noqa: PERF401 - what came before the end counts

    try:
        async with asyncio.timeout(within_s):
            await listen()
    except TimeoutError:
        return found
    raise AssertionError("it came to an end")


class WsBabbler:
    """A server that takes any WebSocket, says the frames that `script` gives, and hangs up."""

    def __init__(self, script: Callable[[], list[bytes | str | int]]) -> None:
        self._script = script
        self.url = ""

    async def __aenter__(self) -> "WsBabbler":
        async def serve(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            for frame in self._script():
                if isinstance(frame, int):
                    await socket.close(code=frame)
                elif isinstance(frame, bytes):
                    await socket.send_bytes(frame)
                else:
                    await socket.send_str(frame)
            await socket.close()
            return socket

        app = web.Application()
        app.add_routes([web.get("/{any:.*}", serve)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def odd_frames(rng: random.Random, good: list[dict[str, Any]]) -> list[bytes | str | int]:
    """Frames of a good conversation with some damaged, lost, repeated or in another order."""
    frames: list[bytes | str | int] = [msgspec.json.encode(message).decode() for message in good]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, way = rng.randrange(len(frames)), rng.randrange(8)
        if way <= 3:
            message = odd_json(rng, good[rng.randrange(len(good))])
            frames[at] = msgspec.json.encode(message).decode()
        elif way == 4:
            frames.insert(at, frames[rng.randrange(len(frames))])
        elif way == 5:
            frames[at] = odd_bytes(rng, str(frames[at]).encode()).decode(errors="replace")
        elif way == 6:
            frames[at] = rng.choice((b"\x00\xff", 1000, 1008, 1011, 4000))
        else:
            rng.shuffle(frames)
    return frames


async def endures(connector: SttConnector, pcm: bytes, options: dict[str, Any]) -> str:
    """One utterance with a vendor that babbles: what came out of it. Anything but a ConnectorError is let through."""
    kept = 0
    try:
        async with asyncio.timeout(0.5), opened(connector, **options) as stream:
            feed(stream, pcm, 6_400)
            stream.finish()
            async for heard in stream.heard():
                kept = max(kept, len(heard.text))
                if heard.final:
                    break
    except ConnectorError as error:
        return type(error).__name__
    except TimeoutError:
        return "silence"
    assert kept <= 32_000
    return "heard"
