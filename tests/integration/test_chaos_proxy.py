"""The TCP proxy of the chaos runs: what it does to the bytes between two who trust each other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from faults.chaos.proxy import HOST, Proxy, Spoil
from meshag import clock

pytestmark = pytest.mark.integration


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(4096):
                writer.write(piece)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1]).start()
    yield proxy
    await asyncio.to_thread(proxy.stop)
    server.close()
    await server.wait_closed()


async def said_back(proxy: Proxy, text: bytes, timeout_s: float = 5.0) -> tuple[bytes, float]:
    """What a new connection gets back, and after how many seconds."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    began = clock.monotonic_s()
    try:
        writer.write(text)
        async with asyncio.timeout(timeout_s):
            return await reader.readexactly(len(text)), clock.monotonic_s() - began
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_as_it_is_made_it_spoils_nothing(proxy: Proxy) -> None:
    text = bytes(range(256)) * 400
    assert (await said_back(proxy, text))[0] == text


async def test_latency_in_both_directions(proxy: Proxy) -> None:
    proxy.spoil = Spoil(delay_s=0.1)
    text, took_s = await said_back(proxy, b"hello")
    assert text == b"hello"
    assert took_s >= 0.2


async def test_a_narrow_line(proxy: Proxy) -> None:
    proxy.spoil = Spoil(bytes_per_s=2000)
    text, took_s = await said_back(proxy, b"x" * 600)
    assert text == b"x" * 600
    assert took_s >= 0.25


async def test_half_open_nothing_comes_and_nobody_is_told(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    proxy.spoil = Spoil(swallow=True)
    writer.write(b"hello")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(1)
    await asyncio.to_thread(proxy.mend)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read(1) == b""
    writer.close()
    assert (await said_back(proxy, b"again"))[0] == b"again"


async def test_connections_are_reset(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert await asyncio.to_thread(proxy.reset) == 1
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read(1) == b""
    writer.close()
    assert (await said_back(proxy, b"again"))[0] == b"again"


async def test_refused(proxy: Proxy) -> None:
    proxy.spoil = Spoil(refuse=True)
    with pytest.raises((asyncio.IncompleteReadError, OSError)):
        await said_back(proxy, b"hello")
