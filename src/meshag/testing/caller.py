"""A caller for tests: joins a session over the WebSocket, speaks, types, and keeps what comes back."""

import asyncio
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from meshag import clock
from meshag.audio import FRAME_BYTES, FRAME_MS, Framer

SILENCE = bytes(FRAME_BYTES)

AGREED_S = 0.3
"""How long a connection that is left may take to agree; one that is frozen never does."""


class TestCaller:
    """`async with TestCaller(room_url, token) as caller`.

    Everything that arrives is kept in `events` (as they came) and `audio` (PCM16 at `out_rate`). When the connection
    breaks, `resume` goes on elsewhere; what is said meanwhile waits until then. With `comes_back` it does so by itself,
    also when it is told that the service leaves.
    """

    __test__ = False  # for pytest: this is not a test class

    def __init__(
        self, room_url: str, token: str, *, rate: int = 16_000, out_rate: int = 24_000, comes_back: bool = False
    ) -> None:
        self._rates = f"rate={rate}&out_rate={out_rate}"
        self._url = room_url
        self._token = token
        self._out_rate = out_rate
        self._way_back = ""
        self._at = ""
        self._turn = 0
        self._heard_bytes = 0
        self._unsent: list[bytes] = []
        self._comes_back = comes_back
        self._watching: asyncio.Task[None] | None = None
        self.resumed = 0
        """How often it went on elsewhere."""
        self.addresses: list[str] = []
        """Where else the session may be joined."""
        self._http = aiohttp.ClientSession()
        self._leaving: set[asyncio.Task[bool]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self.socket: aiohttp.ClientWebSocketResponse
        self.events: list[dict[str, Any]] = []
        self.audio = bytearray()
        self.audio_at: list[tuple[float, int]] = []
        """Monotonic second and length of each piece of audio."""
        self.closed = False

    async def __aenter__(self) -> "TestCaller":
        try:
            url = f"{self._url}?token={self._token}&{self._rates}"
            self.socket = await self._http.ws_connect(url, max_msg_size=0)
        except BaseException:
            await self._http.close()
            raise
        self._reader = asyncio.create_task(self._read())
        if self._comes_back:
            self._watching = asyncio.create_task(self._come_back())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.socket.close()
        await asyncio.gather(*self._leaving)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._http.close()

    async def resume(self, *, timeout_s: float = 10.0) -> str:
        """Go on where the connection broke, or leave it for another: the first address that answers, which is returned.

        TimeoutError when none does in time.
        """
        await self._leave()
        heard_ms = self._heard_bytes * 500 // self._out_rate
        asked = f"resume={self._way_back}&at={self._at}&turn={self._turn}&heard_ms={heard_ms}&{self._rates}"
        async with asyncio.timeout(timeout_s):
            while True:
                for url in dict.fromkeys([*self.addresses, self._url]):
                    try:
                        self.socket = await self._http.ws_connect(f"{url}?{asked}", max_msg_size=0)
                    except aiohttp.ClientError:
                        continue
                    self._url = url
                    self.resumed += 1
                    while self._unsent:
                        await self.socket.send_bytes(self._unsent.pop(0))
                    self.closed = False
                    self._reader = asyncio.create_task(self._read())
                    return url
                await asyncio.sleep(0.05)

    async def _come_back(self) -> None:
        seen = 0
        while True:
            leaving = any(event["type"] == "draining" for event in self.events[seen:])
            seen = len(self.events)
            if leaving or self.closed:
                await self.resume(timeout_s=60)
            self._arrived.clear()
            await self._arrived.wait()

    async def _leave(self) -> None:
        """Close this connection. What was sent over it has been read when the other end agrees, if it still can."""
        self.closed = True
        leaving = asyncio.create_task(self.socket.close())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.wait([leaving], timeout=AGREED_S)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def speak(self, *frames: bytes, pace: bool = True) -> None:
        """Send frames of caller audio, in real time unless `pace` is False."""
        began_s = clock.monotonic_s()
        for i, frame in enumerate(frames):
            try:
                if self.closed:
                    raise ConnectionError
                await self.socket.send_bytes(frame)
            except ConnectionError:
                self._unsent.append(frame)
            if pace:
                await asyncio.sleep(max(0.0, began_s + (i + 1) * FRAME_MS / 1000 - clock.monotonic_s()))

    async def play(self, pcm: bytes, *, silence_ms: int = 0, pace: bool = True) -> None:
        """Send a recording (PCM16 at the declared rate of 16 kHz) and silence after it."""
        frames = [*Framer().push(pcm), *[SILENCE] * (silence_ms // FRAME_MS)]
        await self.speak(*frames, pace=pace)

    async def type(self, text: str) -> None:
        """Send typed input."""
        await self.send({"type": "text", "text": text})

    async def send(self, message: Any) -> None:
        """Send a JSON message."""
        await self.socket.send_str(msgspec.json.encode(message).decode())

    async def wait_for(self, kind: str, *, timeout_s: float = 10.0, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The first event of a kind with these fields, from position `after` on. TimeoutError tells what came."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for event in self.events[after:]:
                        if event["type"] == kind and all(event.get(key) == value for key, value in fields.items()):
                            return event
                    if self.closed and not self._comes_back:
                        raise ConnectionError(f"closed while waiting for {kind}; came: {self.kinds()}")
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise TimeoutError(f"no {kind} {fields} within {timeout_s} s; came: {self.kinds()}") from None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All events of a kind so far."""
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        """The kinds of the events so far."""
        return [event["type"] for event in self.events]

    def reply(self, turn: int) -> str:
        """The reply's text so far, without what only bridged a wait."""
        pieces = [event for event in self.of("reply") if event["turn"] == turn and not event["filler"]]
        return "".join(event["text"] for event in pieces)

    async def _read(self) -> None:
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self.audio += message.data
                self._heard_bytes += len(message.data)
                self.audio_at.append((clock.monotonic_s(), len(message.data)))
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._note(msgspec.json.decode(message.data))
            self._arrived.set()
        self.closed = True
        self._arrived.set()

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._at = event.get("at", self._at)
        if event["type"] in ("ready", "resume"):
            self._way_back, self.addresses = event["resume"], event["addresses"]
        elif event["type"] == "speech_started":
            self._turn, self._heard_bytes = event["turn"], 0
        elif event["type"] == "speech_ended":
            self._turn = 0
