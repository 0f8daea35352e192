"""What a provider must do to serve a stage.

A connector streams; it knows nothing of NATS, sessions or fallbacks. One instance serves all sessions of a worker, so
it keeps what is shared (a loaded model, an HTTP session) and what it returns keeps what belongs to one session.

Errors: a connector raises `ConnectorError` or one of its kinds (or `ModelError` for local models), nothing else.
Cancellation: every await may be cancelled; the connector then stops the work and closes what that call opened.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A provider's part of a session's configuration (`connectors.<stage>.config.<provider>`).

    Unknown fields are refused when the session is created. Keys and secrets never stand here: they come from the
    environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Availability:
    """Whether a connector can work in this process, and if not, what to do about it."""

    available: bool
    detail: str
    """Available: what will answer (`Qwen2.5-0.5B, 478 MB`). Otherwise what is missing and the command that mends it."""


@dataclass(frozen=True)
class Deadlines:
    """How long one call to a provider may take before the next provider is asked, ms. A session may set its own."""

    connect_ms: int = 1_500
    """To be ready to be fed."""

    first_ms: int = 1_200
    """From the request (for stt: from `finish`) to the first item."""

    between_ms: int = 1_000
    """From one item to the next. For stt: from the beginning of speech to the first interim."""

    total_ms: int = 60_000
    """From the request to the end."""

    notice_ms: int = 1_800
    """When nothing has been said this long after the turn's end, the caller is asked for patience."""


PATIENT = Deadlines(connect_ms=30_000, first_ms=20_000, between_ms=10_000, total_ms=120_000, notice_ms=8_000)
"""For models on this machine: slow when it is busy, and nobody else would be quicker."""


CONNECT_MS: ContextVar[int] = ContextVar("connect_ms", default=Deadlines.connect_ms)
"""The connect deadline of the call that is being made, for what opens connections inside of it."""


class Connector:
    """What the connectors of every stage have in common. Made without arguments, and making one is cheap."""

    name: ClassVar[str]
    """The provider's name in a session's configuration."""

    deadlines: ClassVar[Deadlines] = Deadlines()
    """How long its calls may take."""

    options: ClassVar[type[Options]] = Options
    """The model that checks its part of the configuration. By default it takes none."""

    shared: ClassVar[bool] = True
    """Whether its failures are everybody's, as a vendor's are. False: those of this machine alone."""

    def availability(self) -> Availability:
        """Whether it can work here: keys, files and packages are there. Opens no connection, loads no model."""
        return Availability(True, "")

    def accept(self, options: Options) -> None:
        """Called when a session is created. Raises ConfigError when what these options ask for is not offered here."""

    async def warm(self) -> None:
        """Load what is shared. Called once before the worker takes sessions; later calls return at once.

        Asks no provider for anything: a vendor that is down must not keep a worker from starting.
        """

    async def probe(self, options: Options) -> None:
        """Do the smallest real piece of the provider's work. Raises ConnectorError while it is out of order.

        Asked for now and then after a call has failed before anything came of it, never in a caller's turn; `options`
        are that call's. It has as long as a call has to begin. One that broke off midway is tried otherwise, see
        `trials.py`.
        """

    async def aclose(self) -> None:
        """Let go of everything. Idempotent."""


# -- speech to text ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recogniser made of the utterance so far."""

    text: str
    """All of the utterance so far, not a difference. May be empty."""

    final: bool
    """True answers `finish()`: the utterance is complete and the next `feed` begins another."""

    ended: bool = False
    """The provider itself decided that the caller has finished (only where `SttStream.endpointing`)."""

    eager: bool = False
    """The provider thinks that the caller has probably finished. Wrong, if the next one is neither eager nor ended."""


class SttStream(ABC):
    """One session's recognition, utterance after utterance."""

    endpointing: bool = False
    """True: the provider finds the ends of turns itself, is fed silence too, and says `Heard(ended=True)`."""

    interims: bool = False
    """True: while it is fed speech it says something every moment, so that its silence means that it is dead."""

    @abstractmethod
    def feed(self, pcm: bytes) -> None:
        """Give it PCM16 mono 16 kHz, any length. Never blocks and never waits: it queues."""

    @abstractmethod
    def finish(self) -> None:
        """The utterance is over: exactly one `Heard(final=True)` follows for what was fed since the last one."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was fed since the last final: it was no speech. No `Heard` follows for it."""

    @abstractmethod
    def heard(self) -> AsyncIterator[Heard]:
        """What is recognised, in order, until `aclose`. Iterated once. Raises ConnectorError when the stream broke."""

    @abstractmethod
    async def aclose(self) -> None:
        """End the stream. Idempotent."""


class SttConnector(Connector, ABC):
    """Speech to text."""

    @abstractmethod
    async def open(self, options: Options) -> SttStream:
        """A stream for one session, ready to be fed."""


# -- language model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    """1 to 64 letters, digits, `-` and `_`."""

    description: str
    """What it does and when to call it, for the model."""

    parameters: Mapping[str, Any]
    """The JSON schema of its arguments: an object."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants a function called. Between the deltas of a reply, each when it is complete."""

    id: str
    """The model's own name for this call: the answer to it names it."""

    name: str
    arguments: str
    """JSON as the model wrote it: not checked, may be no JSON at all; empty when there are none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation so far."""

    role: Literal["user", "assistant", "tool"]
    text: str
    """May be empty for an assistant that called functions. For a tool: what the function answered."""

    calls: Sequence[ToolCall] = ()
    """For an assistant: the functions that it called after this text. A tool's answer to each follows."""

    call_id: str = ""
    """For a tool: the call that it answers."""


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """Everything a model is told."""

    system: str
    """The system prompt."""

    messages: Sequence[Message]
    """The conversation, oldest first; the last is the user's, or a tool's answer."""

    options: Options
    """The provider's options."""

    said: str = ""
    """The beginning of the answer, already spoken: the model goes on right after it and does not repeat it."""

    tools: Sequence[Tool] = ()
    """The functions that the model may call. Not given to connectors without `tools`."""


GO_ON = (
    "You were interrupted in the middle of your answer, after the words above, which the listener has already heard. "
    "Continue the answer exactly where it stops. Do not repeat any of it, do not apologise, do not comment."
)
"""For models that cannot be made to go on with a message of their own: what to tell them after it."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer, as the model streams it."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """The model is at work on something that is no event yet: the arguments of a call, a thought. Nothing is said.

    It keeps the deadlines of the first and of the next event from ending the reply, and counts for its pace like text.
    One for each piece that the model really wrote: never for an empty or blank one, nor for a keep-alive.
    """

    chars: int
    """How much it wrote, characters, at least 1."""


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """The last event of a reply."""

    reason: Literal["stop", "length", "tools"]
    """`tools`: the model waits for the answers of the functions that it has called."""

    input_tokens: int = 0
    output_tokens: int = 0


LlmEvent = TextDelta | ToolCall | Thinking | ReplyDone


class LlmConnector(Connector, ABC):
    """Language model."""

    tools: ClassVar[bool] = False
    """Whether it can call functions."""

    @abstractmethod
    def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        """The answer as it is generated: deltas, then one ReplyDone. Closing the iterator stops the generation.

        A model that writes for longer than a moment what becomes no delta (a call's arguments) yields `Thinking`.
        Nothing is connected before the first item is asked for.
        """

    def model(self, options: Options) -> str:
        """The name of the model that answers with these options, for people."""
        return str(getattr(options, "model", None) or self.name)


# -- text to speech ---------------------------------------------------------------------------------------------------


class TtsVoice(ABC):
    """One session's voice."""

    rate_hz: int
    """Sample rate of what it speaks."""

    @abstractmethod
    def speak(self, text: str) -> AsyncIterator[bytes]:
        """PCM16 mono of `text`, piece by piece as it is made. Closing the iterator stops the work.

        The same text should give the same audio, so that a takeover can go on in mid-sentence.
        """

    async def aclose(self) -> None:  # noqa: B027 - most voices hold nothing
        """Let go of the session's resources. Idempotent."""


class TtsConnector(Connector, ABC):
    """Text to speech."""

    @abstractmethod
    async def open(self, options: Options) -> TtsVoice:
        """A voice for one session, ready to speak."""


# -- the caller -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booking:
    """A session that needs a place where its caller and its agent meet."""

    session: str
    """Its id."""

    base_url: str
    """The transport service as callers see it, `ws://` or `wss://`."""

    token: str
    """Lets its bearer join the session at the transport service."""

    options: Options
    """The transport's options."""

    name: str = ""
    """What people call it. Any text on one line, may be empty."""

    max_participants: int = 2
    recording: bool = False
    transcription: bool = False

    ttl_s: int = 3600
    """How long the place is wanted at least, s."""

    room: Mapping[str, Any] = field(default_factory=dict)
    """What the request says about the room beyond that; the keys are the connector's own."""

    participant: Mapping[str, Any] = field(default_factory=dict)
    """What the request says about the caller: `name`, `is_owner`, `permissions`."""

    fleet: str = ""
    """A word that all workers of this fleet share and no other fleet has: by it they know the places that are theirs at
    a vendor. Up to 16 of a-z and 0-9."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """How the caller joins a session."""

    room_url: str
    """The address to open: a WebSocket URL, a Daily room, …"""

    token: str
    """What to show there."""

    room: dict[str, Any] = field(default_factory=dict)
    """What is stored with the session to find the place again (`name`, `url`, `expires_at_s`): no secret. Empty: there
    is nothing to take down."""


class TransportConnector(Connector, ABC):
    """How callers reach a session."""

    attends: ClassVar[bool] = False
    """True: the agent goes where the caller is (a room). False: the caller comes to the transport service."""

    @abstractmethod
    async def invite(self, booking: Booking) -> Invitation:
        """Make the place where the caller joins the session."""

    async def dismiss(self, session: str, room: Mapping[str, Any]) -> None:
        """Take that place down. `room`: of the invitation. One that is gone already is no error."""

    async def keep(self, session: str, room: Mapping[str, Any], ttl_s: int) -> dict[str, Any]:
        """See that the place stays for another `ttl_s` seconds. Returns it as it is to be stored from now on."""
        return dict(room)

    async def admit(self, booking: Booking, room: Mapping[str, Any]) -> str:
        """Another token for the session's caller."""
        return booking.token

    async def sweep(self, fleet: str, known: Callable[[str], Awaitable[bool]]) -> None:
        """Take down what a crash has left behind: places of this fleet's sessions that are no longer there.

        Called every few minutes by one transport worker of all. `fleet`: as in the bookings; `known(session id)` tells
        whether it is still there, and is asked after the places have been listed: a session is older than its place.
        Raises ConnectorError when it cannot: it is called again.
        """

    async def attend(self, booking: Booking, room: Mapping[str, Any]) -> "Guest":
        """Go there as the agent. Only where `attends`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Participant:
    """Somebody in a room."""

    id: str
    """Of this stay: who leaves and comes back has another."""

    name: str = ""
    user_id: str = ""
    """As the caller's token says; empty where it says none."""

    joined_at: str = ""
    """ISO 8601."""

    duration_s: int = 0
    """How long they have been there."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording, or a transcript, that the room's provider keeps."""

    id: str
    status: str
    """`in_progress`, `finished`, `failed` or `canceled`."""

    started_at_s: float = 0.0
    """Unix time; 0: not told."""

    duration_s: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """Where a recording or a transcript can be had for a while. Whoever has the address has the file."""

    url: str
    expires_at_s: float = 0.0
    """Unix time; 0: not told."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Whom to call. Its `repr` tells nothing of them: a number is somebody's, and never in a log."""

    phone_number: str = field(default="", repr=False)
    """E.164: `+` and 7 to 15 digits. Empty: `sip_uri` says who."""

    sip_uri: str = field(default="", repr=False)

    display_name: str = field(default="", repr=False)
    """What the others in the room see. Empty: the connector's own word, which is not the number."""

    caller_id: str = field(default="", repr=False)
    """What the one who is called sees, as the room's provider knows it. Empty: the provider's choice."""


class Rooms(ABC):
    """What a transport offers beside inviting whose callers meet in rooms. `room`: of the session's invitation.

    Everything raises ConnectorError, and ConfigError for what the room was not made for.
    """

    @abstractmethod
    async def participants(self, room: Mapping[str, Any]) -> list[Participant]:
        """Who is there, the agent among them. May be some seconds old."""

    @abstractmethod
    async def eject(self, room: Mapping[str, Any], ids: Sequence[str]) -> list[str]:
        """Put participants out. Returns the ids of those who were there."""

    @abstractmethod
    async def start_recording(self, room: Mapping[str, Any]) -> None:
        """Begin to record."""

    @abstractmethod
    async def stop_recording(self, room: Mapping[str, Any]) -> None:
        """Stop recording."""

    @abstractmethod
    async def recordings(self, room: Mapping[str, Any]) -> list[Recording]:
        """The room's recordings, the newest first, at most a hundred."""

    @abstractmethod
    async def room_of(self, recording: str) -> str:
        """The name of the room that a recording is of; empty: there is no such recording."""

    @abstractmethod
    async def recording_link(self, room: Mapping[str, Any], recording: str) -> Link | None:
        """Where one can be had; None: the room has no such recording."""

    @abstractmethod
    async def start_transcription(self, room: Mapping[str, Any]) -> None:
        """Have the provider write down what is said, beside what the session's own recogniser hears."""

    @abstractmethod
    async def stop_transcription(self, room: Mapping[str, Any]) -> None:
        """Stop that."""

    @abstractmethod
    async def transcripts(self, room: Mapping[str, Any]) -> list[Recording]:
        """The room's transcripts, the newest first, at most a hundred."""

    @abstractmethod
    async def transcript_link(self, room: Mapping[str, Any], transcript: str) -> Link | None:
        """Where one can be had (WebVTT); None: the room has no such transcript."""

    @abstractmethod
    async def dial_out(self, room: Mapping[str, Any], dial: Dial) -> str:
        """Call somebody into the room, once: a second attempt would ring twice. Returns the call's id."""

    @abstractmethod
    async def hang_up(self, room: Mapping[str, Any], call: str) -> bool:
        """End a call. False: the room has no such call."""


class Caller(ABC):
    """The open connection to a caller. Sending never blocks and never waits: a slow caller is bounded, not buffered."""

    rate_hz: int
    """Sample rate at which the caller listens."""

    @property
    def present(self) -> bool:
        """Whether anybody is there to be talked to: a session whose caller is away grows old."""
        return True

    transport: ClassVar[str] = "websocket"
    """The connector that it came by."""

    @abstractmethod
    def send_audio(self, pcm: bytes) -> None:
        """PCM16 mono at `rate_hz`, at the pace at which it is to be heard."""

    @abstractmethod
    def send_event(self, event: dict[str, Any]) -> None:
        """A JSON message: what happens in the session."""

    @abstractmethod
    def drop_audio(self) -> None:
        """Forget audio that has not left yet: the agent was interrupted."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> None:
        """End the connection. `code` is a WebSocket close code. Idempotent."""


class Guest(Caller):
    """The agent in a room: whoever else is there is the caller."""

    @abstractmethod
    async def run(self, conversation: "Conversation") -> None:
        """Pass on what is heard and written there, until the room is closed or `close` was called.

        Raises ConnectorError when the room was lost.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Leave. Idempotent."""


class Conversation(Protocol):
    """What a connection tells the session."""

    async def hear(self, pcm: bytes) -> None:
        """Caller audio: PCM16 mono 16 kHz, any whole number of samples."""

    async def read(self, text: str) -> None:
        """What the caller typed. Raises ConfigError when this pipeline takes no text."""

    def interrupt(self) -> None:
        """The caller asks for silence."""

    def participant_joined(self, participant: str, **data: Any) -> None:
        """Somebody has come into the room. `participant`: a name of its own within the session."""

    def participant_left(self, participant: str, reason: str, **data: Any) -> None:
        """They have gone."""
