"""The vendors' HTTP client against a server that hangs up at the worst moment."""

import asyncio
import io
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from meshag.connectors.http import Http
from meshag.errors import ConnectorError, ProviderGarbage, ProviderUnavailable

pytestmark = pytest.mark.contract

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"text":"yes"}'
WAYS = {
    "answer": ANSWER,
    "close": b"",
    "reset": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a length": ANSWER[:-4],
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nhalf",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}
"""What a server may do with a request; all but `answer` end the connection."""


class Server:
    """`ways`: what each connection does with its requests, in order."""

    def __init__(self, ways: Sequence[Sequence[str]]) -> None:
        self._ways = ways
        self.url = ""
        self.requests: list[tuple[int, bytes]] = []
        """The number of the connection, and the body."""
        self._connections = 0
        self.both_here: Callable[[], Any] | None = None
        """Awaited before every answer."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._connections = self._connections, self._connections + 1
        for way in self._ways[number]:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
            except asyncio.IncompleteReadError:
                break
            size = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self.requests.append((number, await reader.readexactly(int(size or 0))))
            if self.both_here is not None:
                await self.both_here()
            writer.write(WAYS[way])
            if way == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()


@asynccontextmanager
async def serving(*ways: Sequence[str]) -> AsyncIterator[tuple[Server, Http]]:
    server = Server(ways)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/x"
    http = Http("acme")
    try:
        yield server, http
    finally:
        await http.aclose()
        await http.aclose()
        listening.close()
        await listening.wait_closed()


def form() -> aiohttp.FormData:
    made = aiohttp.FormData()
    made.add_field("file", io.BytesIO(b"once"), filename="x")
    return made


BODIES: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "get": ("GET", {}, b""),
    "bytes": ("POST", {"data": b"said"}, b"said"),
    "json": ("POST", {"json": {"a": 1}}, b'{"a":1}'),
    "form": ("POST", {"data": form}, b"once"),
}


async def ask(server: Server, http: Http, body: str = "json") -> bytes:
    method, given, _ = BODIES[body]
    async with http.request(method, server.url, headers={}, **given) as answer:
        return await answer.read()


class TestKeptConnection:
    @pytest.mark.parametrize("way", ["close", "reset"])
    @pytest.mark.parametrize("body", BODIES)
    async def test_one_that_ends_as_it_is_used_again_is_no_failure(self, body: str, way: str) -> None:
        async with serving(["answer", way], ["answer"]) as (server, http):
            for _ in range(2):
                assert await ask(server, http, body) == b'{"text":"yes"}'
        assert [number for number, _ in server.requests] == [0, 0, 1]
        assert all(BODIES[body][2] in sent for _, sent in server.requests)

    async def test_a_body_is_made_anew_for_the_second_attempt(self) -> None:
        bodies = iter([b"one", b"two", b"three"])
        async with serving(["answer", "close"], ["answer"]) as (server, http):
            for _ in range(2):
                async with http.request("POST", server.url, headers={}, data=lambda: next(bodies)) as answer:
                    await answer.read()
        assert [sent for _, sent in server.requests] == [b"one", b"two", b"three"]

    async def test_the_second_attempt_trusts_no_other_kept_one(self) -> None:
        async with serving(["answer", "close"], ["answer", "close"], ["answer"]) as (server, http):
            both = asyncio.Barrier(2)
            server.both_here = both.wait
            async with asyncio.timeout(5):
                await asyncio.gather(ask(server, http), ask(server, http))
            server.both_here = None
            assert await ask(server, http)
        assert [number for number, _ in server.requests][-1] == 2
        assert len(server.requests) == 4

    @pytest.mark.parametrize("way", ["close", "reset"])
    async def test_there_is_no_third_attempt(self, way: str) -> None:
        async with serving(["answer", way], [way], ["answer"]) as (server, http):
            await ask(server, http)
            with pytest.raises(ProviderUnavailable):
                await ask(server, http)
        assert [number for number, _ in server.requests] == [0, 0, 1]

    async def test_one_that_has_begun_to_answer_is_not_asked_again(self) -> None:
        async with serving(["answer", "half a head"], ["answer"]) as (server, http):
            await ask(server, http)
            with pytest.raises(ProviderUnavailable):
                await ask(server, http)
        assert len(server.requests) == 2


class TestNewConnection:
    @pytest.mark.parametrize("body", ["bytes", "json", "form"])
    @pytest.mark.parametrize("way", ["close", "reset", "half a head"])
    async def test_one_that_breaks_is_a_failure_at_once(self, way: str, body: str) -> None:
        async with serving([way], ["answer"]) as (server, http):
            with pytest.raises(ProviderUnavailable):
                await ask(server, http, body)
        assert len(server.requests) == 1


class TestBrokenOff:
    @pytest.mark.parametrize("way", ["half a length", "half a chunk", "no chunk"])
    async def test_a_body_that_ends_midway_is_a_connection_that_broke(self, way: str) -> None:
        async with serving(["answer", way], ["answer"]) as (server, http):
            await ask(server, http)
            with pytest.raises(ProviderUnavailable):
                await ask(server, http)
        assert len(server.requests) == 2

    @pytest.mark.parametrize("url", ["http://", "nowhere", "http://[::1", "http://a:b/", "ftp://x/y"])
    async def test_an_address_that_is_none(self, url: str) -> None:
        http = Http("acme")
        with pytest.raises(ConnectorError) as failed:
            async with http.request("GET", url, headers={}):
                pass
        assert type(failed.value) in (ProviderGarbage, ProviderUnavailable)
        await http.aclose()
