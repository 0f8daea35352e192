"""The rooms of the stand-in for Daily, and who is in them.

Media and signalling are not Daily's own protocol, which is not public: whoever joins does so over a WebSocket at
`/__room/<room>`, with the room's rules (token, expiry, privacy, how many) as Daily documents them. JSON messages both
ways; audio as binary messages: to the room 4 bytes of sample rate and PCM16, from it the sender's id (36 bytes) before.
"""

import asyncio
import secrets
import struct
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
import msgspec
from aiohttp import WSMsgType, web

from vendors.daily_words import SHORT, TokenProperties


def iso(seconds: float) -> str:
    """A time as Daily writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Guest:
    """Somebody in a room."""

    id: str
    socket: web.WebSocketResponse | None
    name: str = ""
    user_id: str = ""
    owner: bool = False
    joined_s: float = field(default_factory=time.time)

    def described(self, room: str) -> dict[str, Any]:
        """As the presence endpoints tell it."""
        return {
            "room": room,
            "id": self.id,
            "userId": self.user_id or None,
            "userName": self.name,
            "mtgSessionId": "m-" + room,
            "joinTime": iso(self.joined_s),
            "duration": int(time.time() - self.joined_s),
        }

    def seen(self) -> dict[str, Any]:
        """As the SDK's `Participant`."""
        info = {"isLocal": False, "isOwner": self.owner, "userId": self.user_id, "userName": self.name}
        media = {"microphone": {"state": "receivable", "subscribed": "unsubscribed", "offReasons": []}}
        return {"id": self.id, "info": {**info, "joinedAt": iso(self.joined_s)}, "media": media}


@dataclass
class Room:
    """A room as it is configured."""

    name: str
    privacy: str
    config: dict[str, Any]
    url: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_s: float = field(default_factory=time.time)
    guests: dict[str, Guest] = field(default_factory=dict)
    recording: str = ""
    """The id of what is being recorded."""
    transcript: str = ""
    dialled: dict[str, str] = field(default_factory=dict)
    """Who was called and is still there: the participant's id, by the dial-out's."""
    banned: set[str] = field(default_factory=set)

    def described(self) -> dict[str, Any]:
        """As the REST API tells it."""
        return {
            "id": self.id,
            "name": self.name,
            "api_created": True,
            "privacy": self.privacy,
            "url": self.url,
            "created_at": iso(self.created_s),
            "config": self.config,
        }


class Hall:
    """All rooms of the domain."""

    def __init__(self, key: str, domain: str) -> None:
        self.key = key
        self.domain = domain
        self.domain_id = str(uuid.uuid4())
        self.rooms: dict[str, Room] = {}
        self.messages: list[tuple[str, Any]] = []
        """App messages that went through a room: its name and what was said."""

    # -- tokens -------------------------------------------------------------------------------------------------------

    def token(self, properties: TokenProperties) -> str:
        """A meeting token: a real JWT, signed with the API key."""
        asked = msgspec.to_builtins(properties)
        payload = {SHORT[name]: value for name, value in asked.items()}
        return jwt.encode(payload | {"d": self.domain_id, "iat": int(time.time())}, self.key, algorithm="HS256")

    def read(self, token: str) -> dict[str, Any]:
        """What a token says, by its short names. Raises jwt.PyJWTError."""
        found: dict[str, Any] = jwt.decode(token, self.key, algorithms=["HS256"])
        return found

    # -- the door -----------------------------------------------------------------------------------------------------

    def refusal(self, name: str, token: str) -> str:
        """Why somebody with this token cannot come in now; empty: they can."""
        room = self.rooms.get(name)
        if room is None:
            return "not-found"
        if (exp := room.config.get("exp")) and exp <= time.time():
            return "exp-room"
        if (nbf := room.config.get("nbf")) and nbf > time.time():
            return "nbf-room"
        if token:
            try:
                said = self.read(token)
            except jwt.ExpiredSignatureError:
                return "exp-token"
            except jwt.ImmatureSignatureError:
                return "nbf-token"
            except jwt.PyJWTError:
                return "invalid-token"
            if said.get("d") != self.domain_id or said.get("r", name) != name:  # without `r`: every room of the domain
                return "not-allowed"
            if said.get("ud") in room.banned:
                return "not-allowed"
        elif room.privacy == "private":
            return "not-allowed"
        if len(room.guests) >= room.config.get("max_participants", 200):
            return "meeting-full"
        return ""

    async def door(self, request: web.Request) -> web.StreamResponse:
        """Join: `GET /__room/<room>?token=…&name=…`, a WebSocket."""
        name, token = request.match_info["room"], request.query.get("token", "")
        socket = web.WebSocketResponse(max_msg_size=1 << 20)
        await socket.prepare(request)
        if reason := self.refusal(name, token):
            await socket.send_json({"type": "refused", "reason": reason})
            await socket.close()
            return socket
        room, said = self.rooms[name], self.read(token) if token else {}
        label = said.get("u") or request.query.get("name", "")
        guest = Guest(str(uuid.uuid4()), socket, label, said.get("ud", ""), bool(said.get("o")))
        others = [other.seen() for other in room.guests.values()]
        room.guests[guest.id] = guest
        if said.get("sr") and not room.recording:
            room.recording = secrets.token_hex(8)
        if said.get("ast") and said.get("o") and not room.transcript:
            room.transcript = secrets.token_hex(8)
        try:
            await socket.send_json({"type": "joined", "me": guest.seen(), "others": others})
            await self.tell(room, {"type": "participant-joined", "participant": guest.seen()}, besides=guest.id)
            await self._listen(room, guest, socket)
        finally:
            if room.guests.pop(guest.id, None) is not None:
                left = {"type": "participant-left", "participant": guest.seen(), "reason": "leftCall"}
                await asyncio.shield(self.tell(room, left))
        return socket

    async def _listen(self, room: Room, guest: Guest, socket: web.WebSocketResponse) -> None:
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                said = guest.id.encode() + message.data
                for other in list(room.guests.values()):
                    if other.id != guest.id and other.socket is not None and not other.socket.closed:
                        await other.socket.send_bytes(said)
            elif message.type is WSMsgType.TEXT:
                body = msgspec.json.decode(message.data)
                self.messages.append((room.name, body["data"]))
                event = {"type": "app-message", "data": body["data"], "sender": guest.id}
                await self.tell(room, event, besides=guest.id, only=body.get("to"))

    async def tell(self, room: Room, event: dict[str, Any], *, besides: str = "", only: str | None = None) -> None:
        """Send an event to those in a room."""
        for other in list(room.guests.values()):
            if other.id == besides or only not in (None, "*", other.id) or other.socket is None or other.socket.closed:
                continue
            try:
                await other.socket.send_json(event)
            except (ConnectionError, RuntimeError):
                continue

    async def put_out(self, room: Room, guest: Guest, reason: str) -> None:
        """End somebody's stay."""
        room.guests.pop(guest.id, None)
        if guest.socket is not None and not guest.socket.closed:
            try:
                await guest.socket.send_json({"type": "left", "reason": reason})
                await guest.socket.close()
            except (ConnectionError, RuntimeError):
                pass
        await self.tell(
            room, {"type": "participant-left", "participant": guest.seen(), "reason": "leftCall"}, besides=guest.id
        )

    async def expire(self) -> None:
        """Put everybody out of the rooms that have expired and say so (`eject_at_room_exp`), now and then."""
        while True:
            await asyncio.sleep(0.1)
            for room in list(self.rooms.values()):
                if room.config.get("eject_at_room_exp") and room.config.get("exp", 1 << 60) <= time.time():
                    for guest in list(room.guests.values()):
                        await self.put_out(room, guest, "exp-room")

    def sit(self, room: str, **who: Any) -> Guest:
        """Put somebody into a room who is only looked at: no socket."""
        guest = Guest(str(uuid.uuid4()), None, **who)
        self.rooms[room].guests[guest.id] = guest
        return guest


def packed(pcm: bytes, rate_hz: int) -> bytes:
    """Audio as it is sent to a room."""
    return struct.pack("<I", rate_hz) + pcm


def unpacked(data: bytes) -> tuple[str, int, bytes]:
    """Whose audio, its sample rate, PCM16."""
    return data[:36].decode(), struct.unpack("<I", data[36:40])[0], data[40:]
