"""What happens to sessions, told to those who watch: `GET /ws`, webhooks.

Each event is published to `event.<session>` and kept by the stream EVENTS; its id is its sequence number there, so a
watcher who was away asks for everything after the last id that it saw.
"""

import secrets
from typing import Any, Literal, get_args

import msgspec

from meshag import clock, subjects
from meshag.bus.acknowledged import Acknowledged
from meshag.ids import SessionId

EventType = Literal[
    "session_created",
    "session_updated",
    "session_ended",
    "participant_joined",
    "participant_left",
    "transcript",
    "reply",
    "error",
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


class Events:
    """Publishes a process's events. Never waits and never fails: a live call does not depend on who watches it."""

    def __init__(self, acknowledged: Acknowledged) -> None:
        self._acknowledged = acknowledged

    async def tell(self, kind: EventType, session: SessionId, key: str, *, once: str = "", **data: Any) -> None:
        """Publish an event. `once`: whoever else tells the same under this name within two minutes is not heard."""
        event = Event(type=kind, session=session, at_ns=clock.wall_ns(), key=key, data=data)
        message_id = f"event/{session}/{once or secrets.token_hex(8)}"
        await self._acknowledged.publish(subjects.event(session), msgspec.msgpack.encode(event), message_id)
