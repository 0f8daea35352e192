"""Callers over a WebSocket: PCM16 both ways as binary messages, everything else as JSON text. See docs/websocket.md."""

import asyncio
import select
import socket as sockets
from collections import deque
from typing import Any, ClassVar

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from meshag import clock
from meshag.audio import RATE_HZ, Resampler
from meshag.connectors.contracts import Booking, Caller, Conversation, Invitation, Options, TransportConnector
from meshag.connectors.messages import Message, refuse, type_in
from meshag.errors import MeshError

log = structlog.get_logger("meshag.websocket")

MESSAGE_BYTES = 64 * 1024
"""A message from a caller is shorter than this: four seconds of audio at 8 kHz, 0.7 at 48 kHz."""

AUDIO_BOUND_MS = 1_000
"""Audio kept for a caller who does not read; beyond that the oldest is dropped."""

EVENT_BOUND = 512
"""Events kept for a caller who does not read; beyond that the connection is closed."""

STUCK_S = 5.0
"""A caller who reads nothing for this long is let go."""

CLOSE_S = 2.0
"""A caller who is let go has this long to take the last events and to agree; then the connection is cut."""

BURST_S = 5.0
"""Audio may run this far ahead of real time; then it is read no faster than it could be spoken."""

MESSAGES_PER_S = 50
"""JSON messages, and refused ones, beyond a burst of 100 are read no faster than this."""

MESSAGE_BURST_S = 2.0
"""What that burst takes at that pace."""

SEND_BUFFER_BYTES = 64 * 1024
"""Kernel buffer towards the caller: what is in it cannot be taken back, and hides for so long that nobody reads."""

RECEIVE_BUFFER_BYTES = 128 * 1024
"""Kernel buffer from the caller: what is in it is heard before the end of the connection is seen."""

SHORTEST_S = 0.001
"""What a message of audio takes at least, however little is in it."""

HEARTBEAT_S = 10.0
"""A caller who has sent nothing for this long is pinged, and is gone when half as long brings no answer."""


class WebSocketOptions(Options):
    """A WebSocket needs no options."""


class WebSocketTransport(TransportConnector):
    """The address is the transport service's own."""

    name: ClassVar[str] = "websocket"
    options: ClassVar[type[Options]] = WebSocketOptions

    async def invite(self, booking: Booking) -> Invitation:
        return Invitation(f"{booking.base_url}/sessions/{booking.session}/stream", booking.token)


class _Pace:
    """What a caller sends takes time; how far it may run ahead of that. Nothing is saved up by sending nothing."""

    def __init__(self, burst_s: float) -> None:
        self._burst_s = burst_s
        self._until_s = 0.0

    def wait_s(self, takes_s: float) -> float:
        """How long to wait before reading on, after something that takes `takes_s`."""
        now_s = clock.monotonic_s()
        self._until_s = max(self._until_s, now_s) + takes_s
        return max(0.0, self._until_s - now_s - self._burst_s)


class WebSocketCaller(Caller):
    """One connection. `run` reads it until it ends; `aclose` afterwards, in any case."""

    def __init__(self, socket: web.WebSocketResponse, wire: asyncio.Transport, in_hz: int, out_hz: int) -> None:
        self.rate_hz = out_hz
        self.socket = socket
        self._wire = wire
        self._resampler = Resampler(in_hz, RATE_HZ)
        self._in_hz = in_hz
        self._leaving: deque[str | bytes] = deque()
        self._audio_bytes = 0
        self._audio_bound = AUDIO_BOUND_MS * out_hz // 1000 * 2
        self._events = 0
        self._wake = asyncio.Event()
        self._audio_pace = _Pace(BURST_S)
        self._message_pace = _Pace(MESSAGE_BURST_S)
        self._sending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._hangup = select.poll()
        kernel = wire.get_extra_info("socket")
        if kernel is not None:
            self._hangup.register(kernel.fileno(), getattr(select, "POLLRDHUP", 0))
        self.dropped = 0
        """Audio frames dropped because the caller did not read."""

    # -- to the caller ------------------------------------------------------------------------------------------------

    def send_audio(self, pcm: bytes) -> None:
        if self._closing is not None:
            return
        self._leaving.append(pcm)
        self._audio_bytes += len(pcm)
        while self._audio_bytes > self._audio_bound:
            oldest = next(item for item in self._leaving if isinstance(item, bytes))
            self._leaving.remove(oldest)
            self._audio_bytes -= len(oldest)
            self.dropped += 1
        self._wake.set()

    def send_event(self, event: dict[str, Any]) -> None:
        if self._closing is not None:
            return
        if self._events >= EVENT_BOUND:
            self._leaving.clear()
            self._close(WSCloseCode.TRY_AGAIN_LATER, "too slow")
            return
        self._leaving.append(msgspec.json.encode(event).decode())
        self._events += 1
        self._wake.set()

    def greet(self, event: dict[str, Any]) -> None:
        """Send `event` before whatever was said while the session was joined. Call it before `run`."""
        self._leaving.appendleft(msgspec.json.encode(event).decode())
        self._events += 1

    def drop_audio(self) -> None:
        self._leaving = deque(item for item in self._leaving if isinstance(item, str))
        self._audio_bytes = 0

    async def close(self, code: int, reason: str) -> None:
        """The events said before leave first. Takes `CLOSE_S` when the caller does not read."""
        self._close(code, reason)
        if self._closing is not None and self._closing is not asyncio.current_task():
            await asyncio.wait([self._closing])

    async def refuse(self, error: MeshError) -> None:
        """Say why the session cannot be joined or go on, and close."""
        refuse(self, error.code, str(error))
        code = WSCloseCode.TRY_AGAIN_LATER if error.retryable else WSCloseCode.POLICY_VIOLATION
        await self.close(WSCloseCode.INTERNAL_ERROR if error.code == MeshError.code else code, error.code)

    async def aclose(self) -> None:
        """Let go of the connection. Idempotent."""
        await self.close(WSCloseCode.OK, "bye")
        if self._sending is not None:
            self._sending.cancel()

    def _close(self, code: int, reason: str) -> None:
        if self._closing is None:
            self.drop_audio()
            self._wake.set()
            self._closing = asyncio.get_running_loop().create_task(self._end(code, reason))

    async def _end(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.wait([self._start()])
                await self.socket.close(code=code, message=reason.encode()[:120])
                while self._wire.get_write_buffer_size():  # noqa: ASYNC110 - nobody tells when it has left
                    await asyncio.sleep(0.05)
        except (TimeoutError, ConnectionError, RuntimeError, asyncio.CancelledError):
            self._wire.abort()  # it does not read, or has gone

    def _start(self) -> asyncio.Task[None]:
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())
        return self._sending

    async def _send(self) -> None:
        """Send what there is, in its order; when the connection is closing, until the events have left."""
        try:
            while True:
                self._wake.clear()
                while self._leaving:
                    item = self._leaving.popleft()
                    async with asyncio.timeout(STUCK_S):
                        if isinstance(item, bytes):
                            self._audio_bytes -= len(item)
                            await self.socket.send_bytes(item)
                        else:
                            self._events -= 1
                            await self.socket.send_str(item)
                if self._closing is not None:
                    return
                await self._wake.wait()
        except TimeoutError:
            log.info("caller_too_slow", dropped=self.dropped)
            self._wire.abort()  # every buffer is full: no goodbye would reach it
        except (ConnectionError, RuntimeError):
            pass  # the caller has gone; `run` notices

    # -- from the caller ----------------------------------------------------------------------------------------------

    async def run(self, conversation: Conversation) -> None:
        """Read until the caller or `close` ends the connection."""
        self._start()
        try:
            async for message in self.socket:
                if message.type is WSMsgType.BINARY:
                    wait_s = await self._on_audio(message.data, conversation)
                elif message.type is WSMsgType.TEXT:
                    if not await self._on_text(message, conversation):
                        return
                    wait_s = self._message_pace.wait_s(1 / MESSAGES_PER_S)
                else:
                    continue
                if wait_s and not await self._rest(wait_s):
                    return
        except ConnectionError:
            pass  # gone without a word

    async def _rest(self, seconds: float) -> bool:
        """Read nothing for a while. False when the connection ends meanwhile: what is unread no longer counts."""
        end_s = clock.monotonic_s() + seconds
        while (left_s := end_s - clock.monotonic_s()) > 0:
            if self._wire.is_closing() or self._closing is not None:
                return False
            if self._hangup.poll(0):  # while nothing is read, the event loop does not see it
                self._wire.abort()
                return False
            await asyncio.sleep(min(left_s, 0.2))
        return True

    async def _on_audio(self, pcm: bytes, conversation: Conversation) -> float:
        """How long to read nothing: the caller is too far ahead."""
        if len(pcm) % 2:
            refuse(self, "audio_odd_length", f"{len(pcm)} bytes are no whole number of 16-bit samples: message dropped")
            return self._message_pace.wait_s(1 / MESSAGES_PER_S)
        await conversation.hear(self._resampler.push(pcm))
        return self._audio_pace.wait_s(max(len(pcm) / 2 / self._in_hz, SHORTEST_S))

    async def _on_text(self, message: WSMessage, conversation: Conversation) -> bool:
        """False when the caller says goodbye."""
        try:
            said = msgspec.json.decode(message.data, type=Message)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            refuse(self, "message_invalid", 'a JSON object with a "type" is needed, for example {"type": "ping"}')
            return True
        kind = said.type
        if kind == "text":
            await type_in(self, said.text, conversation)
        elif kind == "interrupt":
            conversation.interrupt()
        elif kind == "ping":
            self.send_event({"type": "pong", "t_ms": clock.wall_ns() // clock.MS})
        elif kind == "bye":
            return False
        else:
            refuse(self, "message_unknown", "type is one of text, interrupt, ping, bye")
        return True


async def accept(request: web.Request, in_hz: int, out_hz: int) -> WebSocketCaller:
    """Upgrade the request. Raises web.HTTPException when it is none to be upgraded."""
    wire = request.transport
    if wire is None:
        raise ConnectionResetError("the caller has gone")
    kernel = wire.get_extra_info("socket")
    if kernel is not None:
        kernel.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER_BYTES)
        kernel.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    socket = web.WebSocketResponse(
        heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES, compress=False, timeout=CLOSE_S, writer_limit=16 * 1024
    )
    await socket.prepare(request)
    return WebSocketCaller(socket, wire, in_hz, out_hz)
