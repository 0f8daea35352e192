"""The agent in a Daily room: hears everybody who is there, speaks to all of them, exchanges app messages.

App messages are those of the WebSocket (docs/websocket.md), as far as they are no audio: from the room `text`,
`interrupt` and `ping`, to the room everything that happens in the session.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
import structlog

from meshag import clock
from meshag.audio import FRAME_BYTES
from meshag.connectors.contracts import Conversation, Guest
from meshag.connectors.daily_line import JOIN_S, DailyLine
from meshag.connectors.messages import Message, type_in
from meshag.errors import ProviderUnavailable

log = structlog.get_logger("meshag.daily")

SPEAK_HZ = 24_000
"""Rate at which the agent is heard."""

WRITE_BYTES = SPEAK_HZ // 50 * 2 * 2
"""As much is given to the SDK at once, 40 ms: what it has cannot be taken back."""

AHEAD_BYTES = SPEAK_HZ * 2
"""Audio kept for a room that does not take it, 1 s; beyond that the oldest is dropped."""

HEARD_BOUND = 250
"""Frames of 20 ms kept for a session that does not take them; beyond that the oldest are dropped."""

LATE_FRAMES = 3
"""When somebody is so far ahead of the others, they are not waited for any more: they send nothing."""

MESSAGE_BYTES = 4_096
"""Daily carries no larger app message."""

MESSAGES_BOUND = 50
"""Messages from the room kept for a session that does not take them; what comes beyond is dropped."""


class DailyGuest(Guest):
    """One stay. Made by `join`; `run` it, then `aclose` it."""

    transport: ClassVar[str] = "daily"

    def __init__(self) -> None:
        self.rate_hz = SPEAK_HZ
        self._line = DailyLine(self, SPEAK_HZ)
        self._others: dict[str, Mapping[str, Any]] = {}
        self._mixer = Mixer()
        self._heard: deque[bytes] = deque(maxlen=HEARD_BOUND)
        self._told: deque[Message] = deque()
        self._came: deque[tuple[str, Mapping[str, Any], str]] = deque()
        self._stirred = asyncio.Event()
        self._speaking: deque[bytes] = deque()
        self._speaking_bytes = 0
        self._writing = False
        self._closing = False
        self._why_lost = ""

    @classmethod
    async def join(cls, url: str, token: str, name: str, *, deadline_s: float = JOIN_S) -> "DailyGuest":
        """Come into the room. Raises ConnectorError."""
        guest = cls()
        await guest._line.open(url, token, name, deadline_s=deadline_s)
        return guest

    @property
    def present(self) -> bool:
        """Whether anybody is there besides the agent."""
        return bool(self._others)

    # -- to the room --------------------------------------------------------------------------------------------------

    def send_audio(self, pcm: bytes) -> None:
        if self._closing:
            return
        self._speaking.append(pcm)
        self._speaking_bytes += len(pcm)
        while self._speaking_bytes > AHEAD_BYTES:
            self._speaking_bytes -= len(self._speaking.popleft())
        self._write()

    def drop_audio(self) -> None:
        self._speaking.clear()
        self._speaking_bytes = 0

    def _write(self) -> None:
        """Give the SDK the next piece, when it has played the one before."""
        if self._writing or not self._speaking or self._closing:
            return
        piece = b""
        while self._speaking and len(piece) < WRITE_BYTES:
            piece += self._speaking.popleft()
        self._speaking_bytes -= len(piece)
        self._writing = True
        self._line.write(piece, self._written)

    def _written(self) -> None:
        self._writing = False
        self._write()

    def send_event(self, event: dict[str, Any]) -> None:
        if self._closing or not self._others or event.get("type") in ("draining", "session_ended"):
            return  # to be replaced by another agent is none of the others' business, and an end is seen by all
        if (fitting := fitted(event)) is not None:
            self._line.tell(fitting)

    async def close(self, code: int, reason: str) -> None:
        self._closing = True
        self.drop_audio()
        self._stirred.set()

    async def aclose(self) -> None:
        self._closing = True
        await self._line.close()

    # -- from the room, on the event loop -----------------------------------------------------------------------------

    def joined(self, participant: Mapping[str, Any]) -> None:
        """Somebody else is there."""
        identifier = str(participant["id"])
        if identifier not in self._others:
            self._others[identifier] = participant
            self._came.append((identifier, participant, ""))
            self._stirred.set()

    def left(self, participant: Mapping[str, Any], reason: str) -> None:
        """They have gone."""
        identifier = str(participant["id"])
        if self._others.pop(identifier, None) is not None:
            self._mixer.drop(identifier)
            self._came.append((identifier, participant, reason or "left"))
            self._stirred.set()

    def heard(self, participant: str, pcm: bytes) -> None:
        """20 ms of somebody's microphone."""
        if participant in self._others:
            self._heard.extend(self._mixer.add(participant, pcm))
            self._stirred.set()

    def told(self, message: Any, sender: str) -> None:
        """An app message: the session's are taken, others are none of ours."""
        try:
            said = msgspec.convert(message, Message)
        except (msgspec.ValidationError, RecursionError):
            return
        if len(self._told) < MESSAGES_BOUND:
            self._told.append(said)
            self._stirred.set()

    def lost(self, why: str) -> None:
        """The room is closed, or the connection broke."""
        self._why_lost = self._why_lost or why
        self._stirred.set()

    # -- to the session -----------------------------------------------------------------------------------------------

    async def run(self, conversation: Conversation) -> None:
        while not self._closing:
            self._stirred.clear()
            while self._came and not self._closing:
                identifier, participant, gone = self._came.popleft()
                if gone:
                    conversation.participant_left(identifier, gone)
                else:
                    conversation.participant_joined(identifier, **_introduced(participant))
            while self._told and not self._closing:
                await self._on_told(self._told.popleft(), conversation)
            while self._heard and not self._closing:
                await conversation.hear(self._heard.popleft())
            if self._why_lost and not self._closing:
                raise ProviderUnavailable(f"daily: the agent is no longer in the room ({_word(self._why_lost)})")
            if not self._closing:
                await self._stirred.wait()

    async def _on_told(self, said: Message, conversation: Conversation) -> None:
        if said.type == "interrupt":
            conversation.interrupt()
        elif said.type == "ping":
            self.send_event({"type": "pong", "t_ms": clock.wall_ns() // clock.MS})
        elif said.type == "text":
            await type_in(self, said.text, conversation)


class Mixer:
    """Several microphones as one: frames of 20 ms, summed. Who sends nothing is not waited for."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytearray] = {}

    def add(self, participant: str, pcm: bytes) -> list[bytes]:
        """The frames that are complete with this piece of somebody's."""
        self._waiting.setdefault(participant, bytearray()).extend(pcm)
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def drop(self, participant: str) -> None:
        """They are not heard any more."""
        self._waiting.pop(participant, None)

    def _next(self) -> bytes | None:
        ready = [one for one in self._waiting.values() if len(one) >= FRAME_BYTES]
        if not ready:
            return None
        if len(ready) < len(self._waiting) and max(map(len, ready)) < LATE_FRAMES * FRAME_BYTES:
            return None
        if len(ready) < len(self._waiting):
            self._waiting = {who: one for who, one in self._waiting.items() if len(one) >= FRAME_BYTES}
        pieces = []
        for one in ready:
            pieces.append(bytes(one[:FRAME_BYTES]))
            del one[:FRAME_BYTES]
        if len(pieces) == 1:
            return pieces[0]
        summed = sum(np.frombuffer(piece, "<i2").astype(np.int32) for piece in pieces)
        return np.clip(summed, -32_768, 32_767).astype("<i2").tobytes()


def fitted(event: dict[str, Any]) -> dict[str, Any] | None:
    """The event as Daily carries it: a text that is too long is cut (`"cut": true`); None for what does not fit."""
    while (size := len(msgspec.json.encode(event))) > MESSAGE_BYTES:
        text = event.get("text")
        if not isinstance(text, str) or not text:
            return None
        event = {**event, "text": text[: max(0, len(text) - max(1, (size - MESSAGE_BYTES + 16) // 6))], "cut": True}
    return event


def _introduced(participant: Mapping[str, Any]) -> dict[str, Any]:
    info = participant.get("info", {})
    return {"name": str(info.get("userName") or ""), "user_id": str(info.get("userId") or "")}


def _word(said: str) -> str:
    """One of the SDK's own words for a reason; nothing longer is repeated."""
    return said if re.fullmatch(r"[a-z-]{1,32}", said) else "error"
