"""A caller for tests: joins a session over the WebSocket, speaks, types, and keeps what comes back."""

import asyncio
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from meshag import clock
from meshag.audio import FRAME_BYTES, FRAME_MS, Framer

SILENCE = bytes(FRAME_BYTES)


class TestCaller:
    """`async with TestCaller(room_url, token) as caller`.

    Everything that arrives is kept in `events` (as they came) and `audio` (PCM16 at `out_rate`).
    """

    __test__ = False  # for pytest: this is not a test class

    def __init__(self, room_url: str, token: str, *, rate: int = 16_000, out_rate: int = 24_000) -> None:
        self._url = f"{room_url}?token={token}&rate={rate}&out_rate={out_rate}"
        self._http = aiohttp.ClientSession()
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
            self.socket = await self._http.ws_connect(self._url, max_msg_size=0)
        except BaseException:
            await self._http.close()
            raise
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.socket.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._http.close()

    async def speak(self, *frames: bytes, pace: bool = True) -> None:
        """Send frames of caller audio, in real time unless `pace` is False."""
        began_s = clock.monotonic_s()
        for i, frame in enumerate(frames):
            await self.socket.send_bytes(frame)
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
                    if self.closed:
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
                self.audio_at.append((clock.monotonic_s(), len(message.data)))
            elif message.type is aiohttp.WSMsgType.TEXT:
                self.events.append(msgspec.json.decode(message.data))
            self._arrived.set()
        self.closed = True
        self._arrived.set()
