"""What every route takes and answers, for the OpenAPI document. A test fails on a route that is not here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import BaseModel

from meshag.api import schemas
from meshag.sessions.config import SessionRequest
from meshag.sessions.requests import DialOutRequest, ExtendRequest, RoomRequest, SayRequest, SwitchRequest


@dataclass(frozen=True)
class Query:
    """A parameter of a query."""

    name: str
    what: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """What a route takes and answers beside problems. Its summary is its function's docstring."""

    tag: str

    answers: Mapping[int, Any] = field(default_factory=dict)
    """By status: a struct, a JSON schema, None for no body, or a media type for what is no JSON."""

    body: type[BaseModel] | Mapping[str, Any] | None = None
    """A model, or a JSON schema."""

    query: tuple[Query, ...] = ()

    examples: Mapping[str, Any] = field(default_factory=dict)
    """Bodies that the route takes, by what they show."""

    problems: Mapping[int, str] = field(default_factory=dict)
    """What may be wrong beside what is everywhere, by status."""

    once: bool = False
    """Whether it takes an `Idempotency-Key`."""

    media: str = "application/json"
    """What the body is."""


def _of(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object that has these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_PARTICIPANT = _of(id=_TEXT, name=_TEXT, user_id=_TEXT, joined_at=_TEXT, duration_s=_WHOLE)
_KEPT = _of(id=_TEXT, status=_TEXT, started_at_s={"type": "number"}, duration_s=_WHOLE)
_ASKED = _of(session_id=_TEXT, status={"const": "asked"})


def _list(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(item)}


def _link(what: str) -> dict[str, Any]:
    return _of(**{what: _TEXT}, url=_TEXT, expires_at_s={"type": "number"})


_NO_ROOM = {409: "The session's callers meet in no room.", 502: "The room's provider does not do it."}
_VENDOR = {502: "The transport's provider does not do it."}
_BUSY = {**_VENDOR, 409: "The first request with this `Idempotency-Key` is still being done."}

OPERATIONS: dict[str, Operation] = {
    "POST /sessions": Operation(
        "sessions",
        {201: schemas.Room},
        RoomRequest,
        examples={
            "a WebSocket": {"provider": "websocket"},
            "a named room for an hour": {
                "provider": "websocket",
                "room_config": {"name": "Front desk", "max_participants": 2, "enable_transcription": True},
                "participant_config": {"name": "Ada"},
                "options": {"config": {"system_prompt": "Answer in one sentence."}, "ttl_s": 3600},
            },
        },
        problems=_BUSY,
        once=True,
    ),
    "POST /sessions/with-config": Operation(
        "sessions",
        {201: schemas.Created},
        SessionRequest,
        examples={
            "all defaults": {"config": {}},
            "a name and a prompt": {"config": {"system_prompt": "Answer in one sentence."}, "session_name": "support"},
        },
        problems=_BUSY,
        once=True,
    ),
    "GET /sessions": Operation(
        "sessions",
        {200: schemas.Sessions},
        query=(
            Query("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            Query("status", "Only those.", {"type": "string", "enum": ["created", "live", "idle"]}),
            Query("cursor", "`next_cursor` of the page before."),
        ),
    ),
    "GET /sessions/{id}": Operation("sessions", {200: schemas.Session}),
    "PATCH /sessions/{id}/config": Operation(
        "sessions",
        {200: schemas.Changed},
        {"type": "object", "description": "A merge patch (RFC 7396) of the body of `POST /sessions/with-config`."},
        examples={"another prompt": {"config": {"system_prompt": "Answer in one word."}}},
        problems={409: "`session_changed`: others were changing it all the while."},
    ),
    "POST /sessions/{id}/extend": Operation(
        "sessions", {200: schemas.Extended}, ExtendRequest, examples={"two hours": {"ttl_s": 7200}}, problems=_VENDOR
    ),
    "POST /sessions/{id}/token": Operation("sessions", {201: schemas.Token}, problems=_VENDOR),
    "DELETE /sessions/{id}": Operation("sessions", {204: None}),
    "GET /sessions/{id}/history": Operation("conversation", {200: schemas.History}),
    "GET /sessions/{id}/transcript": Operation(
        "conversation",
        {200: (schemas.Transcript, "text/plain", "text/vtt")},
        query=(Query("format", "In place of `Accept`.", {"type": "string", "enum": ["json", "text", "vtt"]}),),
        problems={406: "`Accept` takes none of its forms."},
    ),
    "POST /sessions/{id}/say": Operation(
        "conversation",
        {202: schemas.Accepted},
        SayRequest,
        examples={
            "at once": {"text": "Your taxi is here."},
            "after the answer on its way": {"text": "This call ends in a minute.", "interrupt": False},
        },
        problems={409: "`nobody_listening`: no caller is connected."},
    ),
    "POST /sessions/{id}/interrupt": Operation("conversation", {202: schemas.Accepted}),
    "GET /sessions/{id}/stream": Operation(
        "conversation",
        {101: None},
        query=(
            Query("token", "From creating the session, or `POST /sessions/{id}/token`."),
            Query("resume", "In its place, to come back: the last one that the connection before told."),
            Query("at", "With `resume`: the last one that a message had."),
            Query("turn", "With `resume`: the turn whose answer is being heard, 0: none.", {"type": "integer"}),
            Query("heard_ms", "With `resume`: how much of that answer has come.", {"type": "integer"}),
            Query("rate", "Sample rate of what the caller sends.", {"type": "integer", "default": 16_000}),
            Query("out_rate", "Sample rate of what the caller hears.", {"type": "integer", "default": 24_000}),
        ),
    ),
    "GET /sessions/{id}/participants": Operation(
        "rooms", {200: _of(session_id=_TEXT, participants=_list(_PARTICIPANT))}, problems=_VENDOR
    ),
    "POST /sessions/{id}/participants/eject": Operation(
        "rooms",
        {200: _of(session_id=_TEXT, ejected=_list(_TEXT))},
        {
            "type": "object",
            "required": ["ids"],
            "properties": {
                "ids": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                    "minItems": 1,
                    "maxItems": 100,
                }
            },
        },
        examples={"one of them": {"ids": ["e4a1c7d2"]}},
        problems=_NO_ROOM,
    ),
    "GET /sessions/{id}/recordings": Operation(
        "rooms", {200: _of(session_id=_TEXT, recordings=_list(_KEPT))}, problems=_NO_ROOM
    ),
    "POST /sessions/{id}/recordings/start": Operation("rooms", {202: _ASKED}, problems=_NO_ROOM),
    "POST /sessions/{id}/recordings/stop": Operation("rooms", {202: _ASKED}, problems=_NO_ROOM),
    "GET /sessions/{id}/recordings/{recording}/link": Operation("rooms", {200: _link("recording")}, problems=_NO_ROOM),
    "GET /sessions/{id}/transcripts": Operation(
        "rooms", {200: _of(session_id=_TEXT, transcripts=_list(_KEPT))}, problems=_NO_ROOM
    ),
    "POST /sessions/{id}/transcription/start": Operation("rooms", {202: _ASKED}, problems=_NO_ROOM),
    "POST /sessions/{id}/transcription/stop": Operation("rooms", {202: _ASKED}, problems=_NO_ROOM),
    "GET /sessions/{id}/transcripts/{transcript}/link": Operation(
        "rooms", {200: _link("transcript")}, problems=_NO_ROOM
    ),
    "POST /sessions/{id}/dial-out": Operation(
        "rooms",
        {201: _of(call_id=_TEXT)},
        DialOutRequest,
        examples={
            "a telephone": {"phone_number": "+12015550123", "display_name": "Ada"},
            "a SIP address": {"sip_uri": "sip:ada@example.com"},
        },
        problems=_NO_ROOM,
    ),
    "DELETE /sessions/{id}/dial-out/{call_id}": Operation("rooms", {204: None}, problems=_NO_ROOM),
    "GET /ws": Operation(
        "events",
        {101: None},
        query=(
            Query("after", "Everything after the event of this id.", {"type": "integer", "minimum": 0}),
            Query("types", "Only these, comma separated."),
            Query("sessions", "Only these, comma separated."),
        ),
    ),
    "POST /webhooks/daily": Operation(
        "events",
        {200: _of(taken={"type": "boolean"})},
        {"type": "object", "description": "An event, as Daily signs and sends it."},
        problems={401: "It is not signed as it should be.", 502: "Daily does not answer."},
    ),
    "GET /providers": Operation("providers", {200: schemas.Providers}),
    "PUT /providers/{stage}/{name}": Operation(
        "providers", {200: schemas.Switched}, SwitchRequest, examples={"off": {"state": "off"}, "on": {"state": "on"}}
    ),
    "GET /workers": Operation("service", {200: schemas.FleetWorkers}),
    "POST /workers/{worker}/drain": Operation(
        "service", {202: schemas.FleetWorker}, problems={404: "`worker_not_found`: it is not there, or has left."}
    ),
    "GET /health": Operation("service", {200: schemas.Health}),
    "GET /ready": Operation("service", {200: schemas.Ready, 503: schemas.Ready}),
    "GET /metrics": Operation("service", {200: "text/plain"}),
    "GET /openapi.json": Operation("service", {200: {"type": "object"}}),
    "GET /docs": Operation("pages", {200: "text/html"}),
    "GET /": Operation("pages", {200: "text/html"}),
    "GET /static/{name}": Operation("pages", {200: ("text/javascript", "text/css", "image/svg+xml", "text/html")}),
}


def models() -> list[type[BaseModel]]:
    """Every model of a body, each once."""
    found = [one.body for one in OPERATIONS.values() if isinstance(one.body, type)]
    return list(dict.fromkeys(found))


def structs() -> list[type[msgspec.Struct]]:
    """Every struct of an answer, each once."""
    answers = [part for one in OPERATIONS.values() for answer in one.answers.values() for part in parts(answer)]
    found = [part for part in answers if isinstance(part, type)]
    return [*dict.fromkeys(found), schemas.Problem]


def parts(answer: Any) -> tuple[Any, ...]:
    """What an answer may be: one of several, or one."""
    return answer if isinstance(answer, tuple) else (answer,)
