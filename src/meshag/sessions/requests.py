"""The bodies of requests beside a session's configuration, as frozen models read from strangers."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError, model_validator

from meshag.sessions.config import SessionConfig, SessionRequest
from meshag.sessions.pipeline import Part
from meshag.sessions.problems import ConfigProblems, FoundProblems, Problem, problems_of
from meshag.sessions.providers import ProviderName, StageConnectors
from meshag.sessions.strict_json import read_json

P = TypeVar("P", bound=Part)

OneLine = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Up to 200 characters on one line."""

SAY_CHARS = 4_000
"""The longest text that the agent is made to say at once."""


class RoomConfig(Part):
    """Where caller and agent meet."""

    name: OneLine = ""
    """For people; a room's real name is made of it, unique and safe. Up to 200 characters. Default empty."""

    privacy: Literal["private", "public"] = "private"
    """`public`: whoever has the address may join, where the provider has such rooms. Default private."""

    max_participants: int = Field(default=2, ge=1, le=1000)
    """Callers at the same time. 1 to 1000. Default 2."""

    enable_recording: bool = False
    """Whether the audio is kept. Default false."""

    enable_transcription: bool = True
    """Whether the caller is shown what was heard. Default true."""

    enable_chat: bool = False
    """Whether the provider's own page shows a chat. Default false."""

    enable_dialout: bool = False
    """Whether people may be called into the room, where the provider does that. Default false."""

    auto_start_recording: bool = False
    """Record from the beginning on; needs `enable_recording`. Default false."""

    auto_start_transcription: bool = False
    """Have the provider transcribe from the beginning on; needs `enable_transcription`. Default false."""

    @model_validator(mode="after")
    def _enabled_first(self) -> "RoomConfig":
        problems = [
            Problem(f"auto_start_{what}", f"needs enable_{what}", f'send "enable_{what}": true too')
            for what in ("recording", "transcription")
            if getattr(self, f"auto_start_{what}") and not getattr(self, f"enable_{what}")
        ]
        if problems:
            raise FoundProblems(problems)
        return self


class Permissions(Part):
    """What the caller may do in a room. What is left out is the provider's default."""

    has_presence: bool | None = Field(default=None, alias="hasPresence")
    """Whether others see that the caller is there."""

    can_send: bool | list[Literal["audio", "video", "screenAudio", "screenVideo"]] | None = Field(
        default=None, alias="canSend"
    )
    """What the caller may send: all, nothing, or these."""

    can_receive: dict[Literal["base", "byUserId", "byParticipantId"], Any] | None = Field(
        default=None, alias="canReceive"
    )
    """What the caller may receive, from whom, in the provider's words."""

    can_admin: bool | list[Literal["participants", "streaming", "transcription"]] | None = Field(
        default=None, alias="canAdmin"
    )
    """What the caller may rule: all, nothing, or these."""


class ParticipantConfig(Part):
    """Who the caller is."""

    name: OneLine = ""
    """What the others see. Up to 200 characters. Default empty."""

    is_owner: bool = False
    """Whether the room is the caller's own, to rule and to put others out. Default false."""

    permissions: Permissions | None = None
    """What the caller may do. Default: what the provider lets a caller do."""


class RoomOptions(Part):
    """How the session talks, and for how long."""

    config: SessionConfig = Field(default_factory=SessionConfig)
    """As in `POST /sessions/with-config`; its transport is `provider`. Default: a voice chat on local providers."""

    ttl_s: int | None = Field(default=None, ge=10, le=604_800)
    """How long the session is kept after it was last used, s. 10 to 604,800. Default: the service's own."""


class RoomRequest(Part):
    """The body of `POST /sessions`."""

    provider: ProviderName = "websocket"
    """How the caller is reached: a transport provider. Default websocket."""

    room_config: RoomConfig = Field(default_factory=RoomConfig)
    """Where caller and agent meet. Default: a private room for two."""

    participant_config: ParticipantConfig = Field(default_factory=ParticipantConfig)
    """Who the caller is. Default: a guest without a name."""

    options: RoomOptions = Field(default_factory=RoomOptions)
    """How the session talks, and for how long."""

    @property
    def session(self) -> SessionRequest:
        """The same, as a session's configuration."""
        config, room = self.options.config, self.room_config
        told = {self.provider: config.connectors.transport.config.get(self.provider, {})}
        transport = StageConnectors(primary=self.provider, config=told if told[self.provider] else {})
        connectors = config.connectors.model_copy(update={"transport": transport})
        return SessionRequest(
            config=config.model_copy(update={"connectors": connectors}),
            session_name=room.name,
            max_participants=room.max_participants,
            enable_recording=room.enable_recording,
            enable_transcription=room.enable_transcription,
            ttl_s=self.options.ttl_s,
        )


class SayRequest(Part):
    """The body of `POST /sessions/{id}/say`."""

    text: str = Field(min_length=1, max_length=SAY_CHARS, pattern=r"\S")
    """What the agent is to say. 1 to 4,000 characters, not all of them blank."""

    interrupt: bool = True
    """False: it waits until the answer on its way has been heard. Default true."""


class DialOutRequest(Part):
    """The body of `POST /sessions/{id}/dial-out`. Either `phone_number` or `sip_uri`."""

    phone_number: str | None = Field(default=None, pattern=r"^\+[1-9][0-9]{6,14}$")
    """Whom to call: E.164, `+` and the country's code first."""

    sip_uri: str | None = Field(default=None, max_length=500, pattern=r"^sip:[!-~]+$")
    """Whom to call: `sip:` and the address."""

    display_name: OneLine = ""
    """What the others in the room see. Up to 200 characters. Default: the connector's word, never the number."""

    caller_id: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9+._-]*$")
    """What the called sees: a number bought at the provider, or its id. Default: the provider's choice."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "DialOutRequest":
        if (self.phone_number is None) == (self.sip_uri is None):
            told = "needs either phone_number or sip_uri" if self.sip_uri is None else "has phone_number and sip_uri"
            raise FoundProblems([Problem("phone_number", told, "send one of the two")])
        return self


class ExtendRequest(Part):
    """The body of `POST /sessions/{id}/extend`."""

    ttl_s: int = Field(ge=10, le=604_800)
    """How long the session is to live from now, s. 10 to 604,800."""


class SwitchRequest(Part):
    """The body of `PUT /providers/{stage}/{name}`."""

    state: Literal["on", "off"]
    """`off`: no call asks it any more; `on`: they may again."""


def parse(model: type[P], body: bytes) -> P:
    """The `model` in a request's body. Raises ConfigProblems, and nothing else."""
    value = read_json(body)
    if not isinstance(value, dict):
        raise ConfigProblems([Problem("", "the body is not an object", "send a JSON object", "body_not_object")])
    try:
        return model.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigProblems(problems_of(error, model)) from None
