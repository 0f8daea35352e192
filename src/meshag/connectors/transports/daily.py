"""Callers in a Daily room. The agent is a guest there like them: connectors/daily_room.py.

A room is private, and expires with its session: whoever attends it moves its expiry on while the session lives. Its
name ends in the fleet's mark and the session's id, by which a sweep knows what is left of sessions that are gone.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meshag import clock
from meshag.connectors.contracts import (
    Availability,
    Booking,
    Dial,
    Guest,
    Invitation,
    Link,
    Options,
    Participant,
    Recording,
    Rooms,
    TransportConnector,
)
from meshag.connectors.daily_api import DailyApi, Missing
from meshag.errors import ConfigError, ConnectorError, ProviderRejected
from meshag.settings import Settings

log = structlog.get_logger("meshag.daily")

SLUG_CHARS = 60
"""As much of the session's name is in the room's. Daily takes 128 characters, of which the mark and the id need 44."""

LEAST_PARTICIPANTS = 2
"""The agent counts as one: a room for one would shut its caller out."""

AGENT_TOKEN_S = 300
"""The agent's token is made when it joins, and used at once."""

DIALLED_NAME = "Telephone"
"""Who is called and has no name in the room. Daily would show the number, to everybody and in every event."""

RecordingKind = Literal["cloud", "cloud-audio-only", "raw-tracks"]

_OURS = re.compile(r"(?:.*-)?mesh([a-z0-9]{1,16})-([a-z2-7]{26})")


class DailyOptions(Options):
    """What a session may ask of Daily."""

    privacy: Literal["private", "public"] = "private"
    """`public`: whoever has the address may join, without a token."""

    enable_chat: bool = False
    """Whether Daily's own page shows its chat."""

    recording: RecordingKind = "cloud"
    """What `enable_recording` keeps: sound and picture, sound alone, or each participant's tracks by themselves."""

    geo: str = Field("", pattern=r"^[a-z0-9-]{0,32}$")
    """The region of the room's media server (`eu-central-1`). Empty: the nearest to who joins first."""

    dial_out: bool = False
    """Whether the agent's side may call people into the room; Daily's plan must have it."""

    agent_name: str = Field("Agent", min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")
    """What the agent is called in the room."""


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RoomWish(_Wish):
    """What a request says about the room, beyond the session's own fields, which it repeats."""

    name: str | None = Field(None, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
    privacy: Literal["private", "public"] | None = None
    max_participants: int | None = Field(None, ge=1, le=1000)
    enable_recording: bool | None = None
    enable_transcription: bool | None = None
    enable_chat: bool | None = None
    enable_dialout: bool | None = None
    auto_start_recording: bool = False
    auto_start_transcription: bool = False


class Permissions(_Wish):
    """What a participant may do, in Daily's words."""

    hasPresence: bool | None = None  # noqa: N815
    canSend: bool | list[Literal["video", "audio", "screenVideo", "screenAudio"]] | None = None  # noqa: N815
    canReceive: dict[Literal["base", "byUserId", "byParticipantId"], Any] | None = None  # noqa: N815
    canAdmin: bool | list[Literal["participants", "streaming", "transcription"]] | None = None  # noqa: N815


class ParticipantWish(_Wish):
    """What a request says about the caller."""

    name: str = Field("", max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
    is_owner: bool = False
    permissions: Permissions | None = None


W = TypeVar("W", bound=_Wish)


class DailyTransport(TransportConnector, Rooms):
    """A room for each session."""

    name: ClassVar[str] = "daily"
    options: ClassVar[type[Options]] = DailyOptions
    attends: ClassVar[bool] = True

    def __init__(self) -> None:
        settings = Settings()
        self._domain = settings.daily_domain
        self._key = settings.daily_api_key.get_secret_value()
        self._api = DailyApi(self._key, settings.daily_base_url)
        self._later: set[asyncio.Task[None]] = set()

    def availability(self) -> Availability:
        """Whether there are a key, a domain and Daily's SDK."""
        missing = [name for name, value in (("DAILY_API_KEY", self._key), ("DAILY_DOMAIN", self._domain)) if not value]
        if missing:
            return Availability(False, f"set {' and '.join(missing)}")
        if find_spec("daily") is None:
            return Availability(False, "pip install 'meshag[daily]'")
        return Availability(True, f"{self._domain}.daily.co")

    async def probe(self, options: Options) -> None:
        """Ask for the domain."""
        await self._api.domain()

    async def aclose(self) -> None:
        await asyncio.gather(*self._later, return_exceptions=True)
        await self._api.aclose()

    # -- inviting -----------------------------------------------------------------------------------------------------

    async def invite(self, booking: Booking) -> Invitation:
        options = _options(booking)
        room = _read(RoomWish, booking.room, "room_config")
        caller = _read(ParticipantWish, booking.participant, "participant_config")
        if room.auto_start_recording and not booking.recording:
            raise ConfigError(
                "what is not to be recorded cannot begin to be",
                path="room_config.auto_start_recording",
                fix="set enable_recording too",
            )
        expires_at_s = int(clock.wall_s()) + booking.ttl_s
        name = room_name(room.name or booking.name, booking.fleet, booking.session)
        properties = _properties(booking, options, room) | {"exp": expires_at_s}
        made = False
        try:
            found = await self._api.create_room(name, room.privacy or options.privacy, properties)
            made = True
            self._check_domain(found.url)
            stored = {
                "name": found.name,
                "id": found.id,
                "url": found.url,
                "expires_at_s": expires_at_s,
                "recording": options.recording if booking.recording else "",
                "dial_out": _dials(options, room),
                "auto_start_transcription": room.auto_start_transcription,
                "auto_start_recording": room.auto_start_recording,
                "caller": caller.model_dump(exclude_none=True),
            }
            token = await self._caller_token(stored, expires_at_s)
        except BaseException as error:
            if made or not isinstance(error, ProviderRejected):  # who is told no has made nothing
                self._forget(name)
            raise
        return Invitation(found.url, token, stored)

    async def admit(self, booking: Booking, room: Mapping[str, Any]) -> str:
        expires_at_s = max(int(room["expires_at_s"]), int(clock.wall_s()) + 60)
        return await self._caller_token(room, expires_at_s)

    async def dismiss(self, session: str, room: Mapping[str, Any]) -> None:
        await self._api.delete_room(str(room["name"]))

    async def keep(self, session: str, room: Mapping[str, Any], ttl_s: int) -> dict[str, Any]:
        expires_at_s = int(clock.wall_s()) + ttl_s
        await self._api.change_room(str(room["name"]), {"exp": expires_at_s})
        return {**room, "expires_at_s": expires_at_s}

    async def sweep(self, fleet: str, known: Callable[[str], Awaitable[bool]]) -> None:
        found: dict[str, str] = {}
        async for room in self._api.rooms():
            ours = _OURS.fullmatch(room.name)
            if ours is not None and fleet and ours[1] == fleet:
                found[room.name] = ours[2]
        for name, session in found.items():
            if not await known(session):
                await self._api.delete_room(name)
                log.info("room_swept", session=session)

    async def attend(self, booking: Booking, room: Mapping[str, Any]) -> Guest:
        from meshag.connectors.daily_room import DailyGuest  # the SDK starts threads: not before it is needed

        options = _options(booking)
        properties: dict[str, Any] = {
            "room_name": room["name"],
            "exp": int(clock.wall_s()) + AGENT_TOKEN_S,
            "user_name": options.agent_name,
        }
        if room.get("auto_start_transcription"):  # begins when an owner joins
            properties |= {"is_owner": True, "auto_start_transcription": True}
        token = await self._api.token(properties)
        return await DailyGuest.join(str(room["url"]), token, options.agent_name)

    async def _caller_token(self, room: Mapping[str, Any], expires_at_s: int) -> str:
        """For this room alone, until it expires, with no more rights than were asked for."""
        caller = ParticipantWish.model_validate(room.get("caller", {}))
        properties: dict[str, Any] = {"room_name": room["name"], "exp": expires_at_s}
        if caller.name:
            properties["user_name"] = caller.name
        if caller.is_owner:
            properties["is_owner"] = True
        if caller.permissions is not None:
            properties["permissions"] = caller.permissions.model_dump(exclude_none=True)
        if room.get("auto_start_recording"):
            properties["start_cloud_recording"] = True
        return await self._api.token(properties)

    def _check_domain(self, url: str) -> None:
        host = url.removeprefix("https://").partition("/")[0]
        if host.endswith(".daily.co") and host != f"{self._domain}.daily.co":
            raise ProviderRejected(
                "daily: DAILY_API_KEY belongs to another domain than DAILY_DOMAIN", code="provider_misconfigured"
            )

    def _forget(self, name: str) -> None:
        """Nobody will come to a room that was made in vain, or perhaps was."""

        async def forget() -> None:
            try:
                await self._api.delete_room(name)
            except ConnectorError as error:
                log.warning("room_not_taken_down", room=name, error=str(error))  # the sweep will

        task = asyncio.get_running_loop().create_task(forget())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    # -- what happens in the room -------------------------------------------------------------------------------------

    async def participants(self, room: Mapping[str, Any]) -> list[Participant]:
        try:
            found = await self._api.presence(str(room["name"]))
        except Missing:
            return []
        return [
            Participant(one.id, one.user_name or "", one.user_id or "", one.join_time, int(one.duration))
            for one in found
        ]

    async def eject(self, room: Mapping[str, Any], ids: Sequence[str]) -> list[str]:
        try:
            return await self._api.eject(str(room["name"]), ids)
        except Missing:
            return []

    async def start_recording(self, room: Mapping[str, Any]) -> None:
        if not room.get("recording"):
            raise ConfigError(
                "this session was not made to be recorded",
                path="enable_recording",
                fix='make it with "enable_recording": true',
                code="recording_not_enabled",
            )
        await self._api.start_recording(str(room["name"]), str(room["recording"]))

    async def stop_recording(self, room: Mapping[str, Any]) -> None:
        await self._api.stop_recording(str(room["name"]))

    async def recordings(self, room: Mapping[str, Any]) -> list[Recording]:
        found = await self._api.recordings(str(room["name"]))
        return [
            Recording(one.id, one.status.replace("-", "_"), one.start_ts, int(one.duration or 0))
            for one in found
            if one.room_name == room["name"]
        ]

    async def room_of(self, recording: str) -> str:
        try:
            return (await self._api.recording(recording)).room_name
        except Missing:
            return ""

    async def recording_link(self, room: Mapping[str, Any], recording: str) -> Link | None:
        try:
            if (await self._api.recording(recording)).room_name != room["name"]:
                return None  # another session's
            url, expires_at_s = await self._api.recording_link(recording)
        except Missing:
            return None
        return Link(url, expires_at_s)

    async def start_transcription(self, room: Mapping[str, Any]) -> None:
        await self._api.start_transcription(str(room["name"]))

    async def stop_transcription(self, room: Mapping[str, Any]) -> None:
        await self._api.stop_transcription(str(room["name"]))

    async def transcripts(self, room: Mapping[str, Any]) -> list[Recording]:
        found = await self._api.transcripts(str(room["id"]))
        return [
            Recording(one.transcript_id, _STATUS.get(one.status, one.status), 0, int(one.duration or 0))
            for one in found
            if one.room_id == room["id"]
        ]

    async def transcript_link(self, room: Mapping[str, Any], transcript: str) -> Link | None:
        try:
            if (await self._api.transcript(transcript)).room_id != room["id"]:
                return None
            return Link(await self._api.transcript_link(transcript))
        except Missing:
            return None

    async def dial_out(self, room: Mapping[str, Any], dial: Dial) -> str:
        if not room.get("dial_out"):
            raise ConfigError(
                "this session was not made to call people",
                path="room_config.enable_dialout",
                fix='make it with "enable_dialout": true, or "dial_out": true in connectors.transport.config.daily',
                code="dial_out_not_enabled",
            )
        said = {
            "phoneNumber": dial.phone_number,
            "sipUri": dial.sip_uri,
            "displayName": dial.display_name or DIALLED_NAME,
            "callerId": dial.caller_id,
        }
        return await self._api.dial_out(str(room["name"]), {key: value for key, value in said.items() if value})

    async def hang_up(self, room: Mapping[str, Any], call: str) -> bool:
        try:
            await self._api.hang_up(str(room["name"]), call)
        except Missing:
            return False
        return True


_STATUS = {"t_finished": "finished", "t_in_progress": "in_progress", "t_error": "failed"}


def room_name(called: str, fleet: str, session: str) -> str:
    """A room's name: what people call the session as far as Daily takes it, the fleet's mark, the session's id."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", called).strip("-")[:SLUG_CHARS].strip("-")
    return f"{slug}{'-' if slug else ''}mesh{fleet or '0'}-{session}"


def session_of(room: str) -> str:
    """The session whose room has this name; empty for a room that is not a session's."""
    found = _OURS.fullmatch(room)
    return found[2] if found else ""


def _dials(options: DailyOptions, room: RoomWish) -> bool:
    return room.enable_dialout if room.enable_dialout is not None else options.dial_out


def _properties(booking: Booking, options: DailyOptions, room: RoomWish) -> dict[str, Any]:
    """A room's properties, no more than was asked for: Daily refuses those that it does not know."""
    properties: dict[str, Any] = {
        "eject_at_room_exp": True,
        "max_participants": max(LEAST_PARTICIPANTS, booking.max_participants),
    }
    if room.enable_chat if room.enable_chat is not None else options.enable_chat:
        properties["enable_chat"] = True
    if _dials(options, room):
        properties["enable_dialout"] = True
    if booking.recording:
        properties["enable_recording"] = options.recording
    if booking.transcription:  # `enable_transcription` does not exist: this is what keeps a transcript that is begun
        properties["enable_transcription_storage"] = True
    if options.geo:
        properties["geo"] = options.geo
    return properties


def _options(booking: Booking) -> DailyOptions:
    assert isinstance(booking.options, DailyOptions)
    return booking.options


def _read(kind: type[W], said: Mapping[str, Any], where: str) -> W:
    try:
        return kind.model_validate(dict(said))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, (where, *first["loc"])))
        raise ConfigError(first["msg"], path=path, fix="see docs/daily.md") from None
