"""What happens to sessions, told to those who watch: `GET /ws`, webhooks.

Each event is published to `event.<session>` and kept by the stream EVENTS; its id is its sequence number there, so a
watcher who was away asks for everything after the last id that it saw. They hold what was said; the stream's bounds
(`bus/streams.py`) say for how long.
"""

import asyncio
import secrets
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
import structlog

from meshag import clock, subjects
from meshag.bus.acknowledged import Acknowledged
from meshag.ids import SessionId

log = structlog.get_logger("meshag.events")

EventType = Literal[
    "session_created",
    "session_updated",
    "session_ended",
    "participant_joined",
    "participant_left",
    "transcript",
    "reply",
    "error",
    "meeting_started",
    "meeting_ended",
    "recording_started",
    "recording_ready",
    "recording_failed",
    "transcription_started",
    "transcription_ready",
    "transcription_failed",
]
"""`transcript`: what the caller said in a turn; `reply`: what the agent answered, as far as the caller heard it."""

EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a session."""

    type: EventType
    session: SessionId
    at_ns: int
    """Unix time, nanoseconds."""

    key: str = ""
    """The id of the API key that the session belongs to: nobody else hears of it."""

    data: dict[str, Any] = {}
    """What belongs to an event of this type, see docs/events.md."""


_decoder = msgspec.msgpack.Decoder(Event)


def decode(data: bytes) -> Event | None:
    """The event in a message; None for one that this version does not know."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def message(sequence: int, event: Event) -> dict[str, Any]:
    """An event as watchers and receivers get it."""
    at = datetime.fromtimestamp(event.at_ns // clock.MS / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "id": sequence,
        "type": event.type,
        "session_id": event.session,
        "at": at.replace("+00:00", "Z"),
        "data": event.data,
    }


class Events:
    """Publishes a process's events. Never waits and never fails: a live call does not depend on who watches it."""

    def __init__(self, acknowledged: Acknowledged) -> None:
        self._acknowledged = acknowledged
        self._noted: asyncio.Queue[tuple[str, bytes, str]] = asyncio.Queue()
        self._publisher: asyncio.Task[None] | None = None

    def note(self, kind: EventType, session: SessionId, key: str, *, once: str = "", **data: Any) -> None:
        """Publish an event soon, in the order of the calls.

        `once`: whoever else tells the same under this name within two minutes is not heard.
        """
        event = Event(type=kind, session=session, at_ns=clock.wall_ns(), key=key, data=data)
        message_id = f"event/{session}/{once or secrets.token_hex(8)}"
        try:
            encoded = msgspec.msgpack.encode(event)
        except (TypeError, ValueError) as error:  # half a surrogate pair, say
            log.error("event_not_told", type=kind, session=session, error=type(error).__name__)
            return
        self._noted.put_nowait((subjects.event(session), encoded, message_id))
        if self._publisher is None or self._publisher.done():
            self._publisher = asyncio.get_running_loop().create_task(self._publish())

    async def tell(self, kind: EventType, session: SessionId, key: str, *, once: str = "", **data: Any) -> None:
        """The same, for those who can wait until it has left: it does not wait for NATS."""
        self.note(kind, session, key, once=once, **data)
        await self._leave()

    async def aclose(self) -> None:
        """Let what has been noted leave. Idempotent."""
        await self._leave()

    async def _leave(self) -> None:
        if self._publisher is not None:
            await asyncio.wait([self._publisher])

    async def _publish(self) -> None:
        while not self._noted.empty():
            await self._acknowledged.publish(*self._noted.get_nowait())
