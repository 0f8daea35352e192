"""What the API answers, as structs: the OpenAPI document is made of them, and the Python client reads into them.

A field may be added; who reads does not mind more than it knows.
"""

from typing import Any, Literal

import msgspec

from meshag.turns.history import Exchange
from meshag.turns.transcript import Line

Status = Literal["created", "live", "idle"]
"""`created`; `live` while a caller is connected; `idle` after."""


class Created(msgspec.Struct, frozen=True):
    """A session that was made from a configuration."""

    session_id: str
    """26 characters of a-z and 2-7."""

    room_url: str
    """Where the caller joins: a WebSocket or a room's page."""

    token: str
    """What to show there. For this session alone, and short-lived."""

    config_stored: bool
    """Always true."""


class Room(msgspec.Struct, frozen=True):
    """A session that was made with its room."""

    session_id: str
    """26 characters of a-z and 2-7."""

    room_url: str
    """Where the caller joins: a WebSocket or a room's page."""

    room_name: str
    """The room's real name at its provider; over a WebSocket the session's id."""

    meeting_token: str
    """What to show there. For this session alone, and short-lived."""

    expires_at: str
    """When the room, or a session that nobody uses, expires: RFC 3339, UTC."""

    provider_metadata: dict[str, Any]
    """What a caller's program has to know of the provider; `provider` is its name."""


class Summary(msgspec.Struct, frozen=True):
    """A session in a list."""

    session_id: str
    session_name: str
    status: Status
    """`created`; `live` while a caller is connected; `idle` after."""
    created_at_s: float
    """Unix time, seconds."""
    pipeline: str
    """The name of its pipeline."""


class Sessions(msgspec.Struct, frozen=True):
    """A page of sessions, the newest first."""

    sessions: list[Summary]
    next_cursor: str | None = None
    """For `?cursor=`; null: there are no more."""


class Owner(msgspec.Struct, frozen=True):
    """Who serves a stage of a session."""

    worker: str
    """The worker's id; empty: nobody."""
    epoch: int
    """One more with every takeover, from 1."""
    alive: bool


class Lap(msgspec.Struct, frozen=True):
    """How long a part of a turn took, ms, over the session's turns."""

    turns: int
    """How many turns were looked at."""
    last: int | None = None
    p50: int | None = None
    p95: int | None = None


class Latency(msgspec.Struct, frozen=True):
    """From the end of the caller's speech to the first of the answer, and where that time went."""

    voice_to_voice: Lap
    """All of it."""
    stt: Lap
    """To the end of the turn, the silence that tells it included."""
    llm: Lap
    """To the first piece of the reply."""
    tts: Lap
    """To its first audio."""
    transport: Lap
    """Until that left for the caller."""


class Usage(msgspec.Struct, frozen=True):
    """What a session has cost so far, by provider."""

    heard_ms: int = 0
    """Caller audio that arrived, ms."""
    tool_calls: int = 0
    """Functions called."""
    stt: dict[str, dict[str, int]] = {}
    """`audio_ms`: audio that the recogniser was given."""
    llm: dict[str, dict[str, int]] = {}
    """`input_tokens`, `output_tokens`."""
    tts: dict[str, dict[str, int]] = {}
    """`characters` that the voice was given."""


class Session(msgspec.Struct, frozen=True):
    """A session."""

    session_id: str
    session_name: str
    status: Status
    """`created`; `live` while a caller is connected; `idle` after."""
    created_at_s: float
    """Unix time, seconds."""
    pipeline: str
    """The name of its pipeline."""
    version: int
    """Of the configuration: 1, then one more with every change."""
    expires_in_s: int | None
    """Until it expires, if nobody uses it; null: it has."""
    owners: dict[str, Owner]
    """Who serves each stage."""
    turns: int
    """Turns so far."""
    latency_ms: Latency
    usage: Usage
    config: dict[str, Any]
    """As in `POST /sessions/with-config`, whole."""
    max_participants: int
    enable_recording: bool
    enable_transcription: bool
    ttl_s: int | None = None
    """As it was asked for; null: the service's own."""


class Changed(msgspec.Struct, frozen=True):
    """A session's configuration after a change."""

    session_id: str
    version: int
    """Of the configuration."""
    config: dict[str, Any]
    """All of it."""


class Extended(msgspec.Struct, frozen=True):
    """How long a session lives now."""

    session_id: str
    expires_in_s: int


class Token(msgspec.Struct, frozen=True):
    """Another token for a session's caller."""

    session_id: str
    token: str


class Accepted(msgspec.Struct, frozen=True):
    """It was passed on to whoever has the session's caller."""

    session_id: str
    accepted: bool
    """Always true."""


class History(msgspec.Struct, frozen=True):
    """What was said, turn by turn."""

    session_id: str
    turns: list[Exchange]


class Transcript(msgspec.Struct, frozen=True):
    """What was said, with times."""

    session_id: str
    started_at: str
    """When the session was made: RFC 3339, UTC. The lines' times count from here."""
    lines: list[Line]


class Provider(msgspec.Struct, frozen=True, omit_defaults=True):
    """A provider of a stage."""

    available: bool
    """Whether it can work here."""
    detail: str
    """What it is, or what it lacks."""
    state: Literal["closed", "open", "off"]
    """`closed`: in use; `open`: it failed and is being probed; `off`: an operator switched it off."""
    code: str = ""
    """Why, where it is not in use."""
    since_ms: int = 0
    """Since when, Unix time."""


class Providers(msgspec.Struct, frozen=True):
    """Every provider of every stage, by stage and name."""

    providers: dict[str, dict[str, Provider]]


class Switched(msgspec.Struct, frozen=True, omit_defaults=True):
    """A provider that was switched."""

    stage: str
    provider: str
    state: Literal["closed", "open", "off"]
    code: str = ""
    since_ms: int = 0


class FleetWorker(msgspec.Struct, frozen=True):
    """A process that serves a stage of many sessions."""

    worker: str
    """Its id: 13 characters of a-z and 2-7, new with each start."""
    stage: str
    sessions: int
    """That it has now."""
    capacity: int
    """How many it takes."""
    draining: bool
    """Whether it hands them over and ends."""


class FleetWorkers(msgspec.Struct, frozen=True):
    """Every worker that is alive, by stage."""

    workers: list[FleetWorker]


class Health(msgspec.Struct, frozen=True):
    """The process is alive."""

    status: Literal["alive"]
    stage: str
    worker: str
    version: str


class Ready(msgspec.Struct, frozen=True):
    """Whether the service takes sessions, and the state of what it needs."""

    ready: bool
    stage: str
    worker: str
    sessions: dict[str, int]
    """`owned` and `capacity`."""
    draining: bool
    nats: dict[str, Any]
    valkey: dict[str, Any]
    providers: dict[str, Provider]
    workers: dict[str, int]
    """Living workers, by stage."""


class Wrong(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    path: str
    """The field in dots; empty: the body as a whole."""
    message: str
    fix: str
    """What to do about it."""
    code: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 has it."""

    type: str
    """`urn:meshag:` and the code."""
    title: str
    """For people."""
    status: int
    code: str
    """For programs: a word that does not change."""
    path: str = ""
    """The field that is wrong, in dots."""
    fix: str = ""
    """What to do about it."""
    problems: list[Wrong] = []
    """Everything that is wrong, where it is the body."""
    request_id: str = ""
    """Of the request, as the service's log has it."""
