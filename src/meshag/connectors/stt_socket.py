"""A recogniser behind a WebSocket: audio goes out in batches, what was heard comes back, and silence is noticed.

open ──▶ feed, finish, reset (they queue) ──▶ _send ──▶ the vendor ──▶ _receive ──▶ take ──▶ say ──▶ heard
"""

import asyncio
import re
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import aiohttp
import msgspec

from meshag import clock
from meshag.connectors.contracts import Heard, SttStream
from meshag.connectors.http import LINE_BYTES, Http, as_ours
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

BATCH_BYTES = 1280
"""Audio that is sent at once, 40 ms: half the messages of single frames, and nobody waits for it at the end."""

SEND_S = 5.0
"""A vendor that takes nothing for so long is gone. Bounds what waits to be sent."""

GOODBYE_S = 0.05
"""A socket is closed after this long, with or without the vendor's goodbye: the next provider waits for it."""

TICK_S = 0.25
"""When nothing was sent for so long, `idle` is asked what to do about it."""

TEXT_CHARS = 32_000
"""An utterance holds less text than this: a minute of speech has a thousand characters."""

_REASON = re.compile(r"[A-Z]{2,10}-\d{4}")


class Outbox:
    """What was heard and is not fetched yet. An interim that nobody has fetched gives way to the next."""

    def __init__(self) -> None:
        self._heard: deque[Heard] = deque()
        self._end: ConnectorError | None = None
        self._ended = False
        self._news = asyncio.Event()

    def put(self, heard: Heard) -> None:
        """One more."""
        if self._heard and not (self._heard[-1].final or self._heard[-1].ended):
            self._heard.pop()
        self._heard.append(heard)
        self._news.set()

    def end(self, error: ConnectorError | None = None) -> None:
        """Nothing more comes, because of `error`. Only the first end counts."""
        if not self._ended:
            self._ended, self._end = True, error
            self._news.set()

    async def __aiter__(self) -> AsyncIterator[Heard]:
        while True:
            while self._heard:
                yield self._heard.popleft()
            if self._ended:
                if self._end is not None:
                    raise self._end
                return
            self._news.clear()
            await self._news.wait()


class SocketStream(SttStream):
    """One session's stream over a vendor's WebSocket."""

    def __init__(self, provider: str, socket: aiohttp.ClientWebSocketResponse, batch_bytes: int = BATCH_BYTES) -> None:
        self.provider = provider
        self._socket = socket
        self._batch_bytes = batch_bytes
        self._held = bytearray()
        self._queue: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._sent_s = clock.monotonic_s()
        self._outbox = Outbox()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._closed = self._broken = False

    def run(self, stack: AsyncExitStack) -> None:
        """From now on it sends and hears. `stack`: what is open for it, and closed with it."""
        self._stack = stack
        self._tasks = [
            asyncio.create_task(self._working(self._send), name=f"{self.provider}-send"),
            asyncio.create_task(self._working(self._receive), name=f"{self.provider}-receive"),
        ]

    # -- for those that know the vendor's protocol --------------------------------------------------------------------

    @abstractmethod
    def send_audio(self, pcm: bytes) -> None:
        """Queue a batch of whole samples."""

    @abstractmethod
    def take(self, message: str) -> None:
        """A message of the vendor. Raises ConnectorError, or msgspec's errors for what it cannot read."""

    def idle(self, quiet_s: float) -> None:
        """Nothing was sent for `quiet_s`: send what keeps the vendor awake, if it needs anything."""

    def send(self, message: bytes | str) -> None:
        """Queue a binary or a text message."""
        if not self._broken:
            self._queue.put_nowait(message)

    def say(self, heard: Heard) -> None:
        """Something was heard."""
        if len(heard.text) > TEXT_CHARS:
            raise ProviderGarbage(f"{self.provider}: an endless transcript")
        self._outbox.put(heard)

    def flush(self, *, end: bool = False) -> None:
        """Send the audio that waits for a full batch. `end`: half a sample that is left over is dropped."""
        whole = len(self._held) & ~1
        if whole:
            pcm = bytes(self._held[:whole])
            del self._held[:whole]
            self.send_audio(pcm)
        if end:
            self._held.clear()

    # -- the contract -------------------------------------------------------------------------------------------------

    def feed(self, pcm: bytes) -> None:
        if self._broken:
            return
        self._held += pcm
        if len(self._held) >= self._batch_bytes:
            self.flush()

    async def heard(self) -> AsyncIterator[Heard]:
        async for heard in self._outbox:
            yield heard

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = self._broken = True
        self._outbox.end()
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await self._stack.aclose()

    # -- the two directions -------------------------------------------------------------------------------------------

    async def _working(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ConnectorError as error:
            self._break(error)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._break(ProviderGarbage(f"{self.provider}: a message that is not of its protocol"))
        except Exception as error:  # whoever iterates must learn that nothing more will come
            name = type(error).__name__
            self._break(as_ours(self.provider, error) or ConnectorError(f"{self.provider}: {name}"))

    def _break(self, error: ConnectorError) -> None:
        self._broken = True
        self._outbox.end(error)

    async def _send(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    message = await self._queue.get()
            except TimeoutError:
                self.idle(clock.monotonic_s() - self._sent_s)
                continue
            try:
                async with asyncio.timeout(SEND_S):
                    if isinstance(message, bytes):
                        await self._socket.send_bytes(message)
                    else:
                        await self._socket.send_str(message)
            except TimeoutError:
                raise ProviderTimeout(f"{self.provider}: it has taken nothing for {SEND_S:.0f} s") from None
            self._sent_s = clock.monotonic_s()

    async def _receive(self) -> None:
        while True:
            self.take(await received(self.provider, self._socket))


async def dial(http: Http, url: str, headers: dict[str, str], stack: AsyncExitStack) -> aiohttp.ClientWebSocketResponse:
    """An open WebSocket, closed quickly with `stack` whatever the vendor does. Raises ConnectorError."""
    socket = await stack.enter_async_context(http.websocket(url, headers=headers, max_message_bytes=LINE_BYTES))
    stack.push_async_callback(_goodbye, socket)
    return socket


async def _goodbye(socket: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(Exception):
        async with asyncio.timeout(GOODBYE_S):
            await socket.close()


async def received(provider: str, socket: aiohttp.ClientWebSocketResponse) -> str:
    """The vendor's next text message. Raises ConnectorError when there is none."""
    message = await socket.receive()
    if message.type is aiohttp.WSMsgType.TEXT:
        text: str = message.data
        return text
    if message.type is aiohttp.WSMsgType.BINARY:
        raise ProviderGarbage(f"{provider}: a binary message")
    if message.type is aiohttp.WSMsgType.ERROR:
        raise ProviderGarbage(f"{provider}: {type(message.data).__name__}")
    code = message.data if message.type is aiohttp.WSMsgType.CLOSE else socket.close_code
    raise closed(provider, code, message.extra)


def closed(provider: str, code: int | None, reason: str | None) -> ConnectorError:
    """What it means that the vendor hung up. Of its words only a short code is repeated: `NET-0001`."""
    known = _REASON.search(reason or "")
    what = f"{provider}: closed with {code}" + (f" {known[0]}" if known else "")
    if code == aiohttp.WSCloseCode.POLICY_VIOLATION:
        return ProviderRejected(what)
    garbage = (
        aiohttp.WSCloseCode.PROTOCOL_ERROR,
        aiohttp.WSCloseCode.UNSUPPORTED_DATA,
        aiohttp.WSCloseCode.INVALID_TEXT,
        aiohttp.WSCloseCode.MESSAGE_TOO_BIG,
    )
    return ProviderGarbage(what) if code in garbage else ProviderUnavailable(what)
