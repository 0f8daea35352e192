"""A client of `GET /ws` for tests."""

import asyncio
from types import TracebackType
from typing import Any

import aiohttp

from meshag.embedded.mesh import Mesh


def address(mesh: Mesh, index: int = 0) -> str:
    """The transport service number `index`, as a WebSocket address."""
    return f"ws://127.0.0.1:{mesh.find('transport', index).port}"


class Watch:
    """`async with Watch(url) as watch`. Keeps every message; `reads` turns it into one that reads nothing."""

    def __init__(self, url: str, *, reads: bool = True, **query: Any) -> None:
        self._url = f"{url}/ws"
        self._query = {name: str(value) for name, value in query.items()}
        self._http = aiohttp.ClientSession()
        self._reads = reads
        self._reader: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self.messages: list[dict[str, Any]] = []
        self.closed: tuple[int | None, str] | None = None
        """Close code and reason."""

    async def __aenter__(self) -> "Watch":
        try:
            self.socket = await self._http.ws_connect(self._url, params=self._query, autoping=True)
        except BaseException:
            await self._http.close()
            raise
        if self._reads:
            self.read()
            await self.wait(lambda: self.messages)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.socket.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._http.close()

    def read(self) -> None:
        """Begin to read."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        reason = ""
        while True:
            message = await self.socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                self.messages.append(message.json())
                self._arrived.set()
                continue
            if message.type is aiohttp.WSMsgType.CLOSE:
                reason = str(message.extra)
            self.closed = (self.socket.close_code, reason)
            self._arrived.set()
            return

    async def wait(self, check: Any, *, timeout_s: float = 15) -> Any:
        """The first true answer of `check`, asked after every message."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := check()):
                    self._arrived.clear()
                    await self._arrived.wait()
                return found
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s} s; closed: {self.closed}; came: {self.messages}") from None

    def events(self, session: str = "") -> list[dict[str, Any]]:
        """The events so far, of one session or of all."""
        return [one for one in self.messages if "id" in one and session in ("", one["session_id"])]

    def types(self, session: str = "") -> list[str]:
        """The types of the events so far."""
        return [event["type"] for event in self.events(session)]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of a type so far."""
        return [message for message in self.messages if message["type"] == kind]
