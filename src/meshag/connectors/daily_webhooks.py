"""What Daily tells by webhook: https://docs.daily.co/reference/rest-api/webhooks.

A signature is the base64 of HMAC-SHA256 over `<X-Webhook-Timestamp>.<body>`, keyed with the base64-decoded secret.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshag.errors import AuthError, WireError
from meshag.sessions.events import EventType

AGE_S = 300
"""What was signed longer ago, or so far in the future, is not believed."""

_MILLISECONDS = 100_000_000_000
"""A timestamp above this is in milliseconds: in seconds it would be the year 5138."""

KINDS: dict[str, EventType] = {
    "meeting.started": "meeting_started",
    "meeting.ended": "meeting_ended",
    "participant.joined": "participant_joined",
    "participant.left": "participant_left",
    "recording.started": "recording_started",
    "recording.ready-to-download": "recording_ready",
    "recording.error": "recording_failed",
    "transcript.started": "transcription_started",
    "transcript.ready-to-download": "transcription_ready",
    "transcript.error": "transcription_failed",
}
"""What Daily calls it, and what we call it."""


class _Event(msgspec.Struct):
    type: str = ""
    id: str = ""
    payload: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Told:
    """One event."""

    id: str
    """The same again is the same event."""

    kind: EventType

    room: str = ""
    """The room's name, or where Daily does not tell it, its id. May be empty: then `recording` finds it."""

    recording: str = ""
    """The id of the recording that it is about."""

    once: str = ""
    """Under this name the agent in the room tells the same."""

    data: Mapping[str, Any] = field(default_factory=dict)


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> None:
    """Raises AuthError unless Daily has signed this, lately."""
    timestamp, shown = headers.get("X-Webhook-Timestamp", ""), headers.get("X-Webhook-Signature", "")
    if not timestamp or not shown:
        raise AuthError("the webhook is not signed", code="webhook_unsigned")
    if not (timestamp + shown).isascii():  # a header's other bytes cannot be encoded
        raise AuthError("the webhook's signature is not Daily's", code="webhook_forged")
    try:
        key = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        raise AuthError("DAILY_WEBHOOK_SECRET is not the base64 that Daily gave", code="webhook_secret") from None
    digest = hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).digest()
    if not hmac.compare_digest(base64.b64encode(digest), shown.encode()):
        raise AuthError("the webhook's signature is not Daily's", code="webhook_forged")
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 16:
        raise AuthError("the webhook's timestamp is no number", code="webhook_forged")
    signed_s = int(timestamp) / 1000 if int(timestamp) > _MILLISECONDS else int(timestamp)
    if abs(now_s - signed_s) > AGE_S:
        raise AuthError("the webhook was signed too long ago", code="webhook_old")


def is_trial(body: bytes) -> bool:
    """Whether this is the request with which Daily tries an address when a webhook is made: `{"test": "test"}`."""
    try:
        return bool(msgspec.json.decode(body) == {"test": "test"})
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def read(body: bytes) -> Told | None:
    """The event; None for one that is none of ours. Raises WireError for what is no event."""
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise WireError("no event of Daily's", code="webhook_invalid") from None
    kind = KINDS.get(event.type)
    if kind is None:
        return None
    if not 1 <= len(event.id) <= 200:
        raise WireError("an event of Daily's has an id", code="webhook_invalid")
    said = event.payload
    room = _text(said, "room") or _text(said, "room_name") or _text(said, "room_id")
    recording = _text(said, "recording_id")
    once = ""
    data: dict[str, Any] = {}
    if kind in ("participant_joined", "participant_left"):
        participant = _text(said, "session_id")
        once = f"{'joined' if kind == 'participant_joined' else 'left'}/{participant}"
        data = {"participant": participant, "transport": "daily"}
        if kind == "participant_joined":
            data |= {"name": _text(said, "user_name"), "user_id": _text(said, "user_id")}
        else:
            data |= {"reason": "left", "duration_s": _number(said, "duration")}
    elif recording or kind == "recording_failed":
        data = {"recording": recording, "duration_s": _number(said, "duration")} if recording else {}
    elif kind.startswith("transcription"):
        data = {"transcript": _text(said, "id"), "duration_s": _number(said, "duration")}
    return Told(event.id, kind, room, recording, once, {name: value for name, value in data.items() if value != ""})


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return value[:200] if isinstance(value, str) else ""


def _number(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return int(value) if isinstance(value, (int, float)) and 0 <= value <= 1_000_000_000 else 0
