"""A stand-in's end of a WebSocket: what it says goes through its faults."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from vendors.faults import Faults, StandIn, forever, hang_up

KEPT = 500
"""Messages of a socket that are kept for the test to look at."""


async def accept(
    stand_in: StandIn, request: web.Request, error: Callable[[Faults], web.Response]
) -> web.WebSocketResponse | web.Response:
    """The open socket, or the answer that refuses it. `error`: the vendor's own for the faults' status."""
    faults = stand_in.faults.now
    if faults.refuse:
        hang_up(request)
        return web.Response()
    if faults.mute:
        await forever()
    if faults.status:
        return error(faults)
    socket = web.WebSocketResponse(max_msg_size=32 * 1024 * 1024)
    await socket.prepare(request)
    return socket


class Line:
    """One socket. `item` is for transcripts, which the faults count; `say` for everything else."""

    def __init__(
        self, stand_in: StandIn, request: web.Request, socket: web.WebSocketResponse, keep_alive: dict[str, Any]
    ) -> None:
        self._stand_in = stand_in
        self._request = request
        self._socket = socket
        self._keep_alive = keep_alive
        self._items = 0
        self._dripping: asyncio.Task[None] | None = None

    @property
    def _faults(self) -> Faults:
        return self._stand_in.faults.now

    @property
    def _silent(self) -> bool:
        faults = self._faults
        return faults.mute or faults.headers_only or 0 <= faults.silent_after <= self._items

    async def say(self, message: dict[str, Any]) -> None:
        """A message that is no transcript."""
        if not self._silent and not self._faults.drip_s:
            await self._send(message)

    async def item(self, message: dict[str, Any], error: dict[str, Any]) -> None:
        """A transcript. `error`: the vendor's own message for a failure within the stream."""
        faults = self._faults
        if faults.drip_s and self._dripping is None:
            self._dripping = asyncio.create_task(self._drip())
        if self._silent or faults.drip_s:
            return
        await asyncio.sleep(faults.slow_s + (faults.first_s if not self._items else 0.0))
        if faults.garbage:
            await self._garbage(faults.garbage, message)
            return
        if 0 <= faults.cut_after <= self._items:
            hang_up(self._request)
            return
        if 0 <= faults.error_after <= self._items:
            await self._send(error)
            await self._socket.close(code=1011)
            return
        self._items += 1
        await self._send(message)
        while faults.endless and not self._socket.closed:
            await self._send(message)
            await asyncio.sleep(0)

    async def _send(self, message: dict[str, Any]) -> None:
        with suppress(ConnectionError):
            await self._socket.send_str(msgspec.json.encode(message).decode())

    async def _drip(self) -> None:
        while not self._socket.closed:
            await asyncio.sleep(self._faults.drip_s or 1.0)
            await self._send(self._keep_alive)

    async def _garbage(self, kind: str, message: dict[str, Any]) -> None:
        with suppress(ConnectionError):
            if kind == "binary":
                await self._socket.send_bytes(os.urandom(64))
            else:
                await self._socket.send_str(garbage_text(kind, message))

    def close(self) -> None:
        """The socket is closed."""
        if self._dripping is not None:
            self._dripping.cancel()


def garbage_text(kind: str, message: dict[str, Any]) -> str:
    """What comes instead of `message`."""
    if kind == "types":
        return msgspec.json.encode(wrong_types(message)).decode()
    return {
        "html": "<html><body>502 Bad Gateway</body></html>",
        "json": '["unexpected"]',
        "nan": '{"type": "Results", "start": NaN, "text": NaN}',
        "long_line": "x" * 10_000_000,
        "empty": "",
    }[kind]


def wrong_types(value: Any, name: str = "") -> Any:
    """The same with a number for every text but the name of its kind."""
    if isinstance(value, dict):
        return {key: wrong_types(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [wrong_types(inner) for inner in value]
    return 42 if isinstance(value, str) and name not in ("type", "event") else value


async def messages(socket: web.WebSocketResponse, idle_s: float | None = None) -> Any:
    """Each message, bytes or text. Raises TimeoutError after `idle_s` without one."""
    while True:
        message = await socket.receive(timeout=idle_s)
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return
        yield message.data
