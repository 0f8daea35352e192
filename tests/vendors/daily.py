"""Daily's REST API, as far as rooms, tokens, presence, recordings, transcripts, dial-out and webhooks go.

From the API reference; the words in `info` are as people report them. Not in the reference: that a room which nobody
is in cannot be recorded, and what a dial-out that is not allowed is answered. `async with DailyStandIn() as vendor`,
its base address is `vendor.url + "/v1"`.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import jwt
import msgspec
from aiohttp import web

from vendors.daily_hall import Hall, Room, iso
from vendors.daily_words import (
    NAME,
    SHORT,
    AppMessageBody,
    DialOutBody,
    DialOutStopBody,
    EjectBody,
    RecordingBody,
    RoomBody,
    StopBody,
    TokenBody,
    TranscriptionBody,
    WebhookBody,
)
from vendors.faults import StandIn, forever, hang_up, main

KEY = "daily-test-key-of-32-letters-or-so"
DOMAIN = "mesh-test"
LIMIT_MOST = 100

CODES = {
    400: "invalid-request-error",
    401: "authentication-error",
    403: "forbidden-error",
    404: "not-found",
    429: "rate-limit-error",
}
"""By status; everything else is `server-error`."""

GARBAGE = {
    "binary": ("application/json", b"\xff\x00\x13" * 333),
    "html": ("text/html", b"<html>Bad gateway</html>"),
    "json": ("application/json", b'{"other": "shape"}'),
    "nan": ("application/json", b"NaN"),
    "types": ("application/json", b'{"name": 5, "url": [], "token": {}, "data": "none", "config": 1}'),
    "long_line": ("application/json", b"[" + b"1," * 5_000_000 + b"1]"),
    "empty": ("application/json", b""),
}

B = TypeVar("B")

Answer = Callable[[web.Request], Awaitable[Any]]


class Refused(Exception):  # noqa: N818
    """An error's answer."""

    def __init__(self, status: int, info: str = "", code: str = "") -> None:
        super().__init__(info)
        self.status, self.info, self.code = status, info, code


class DailyStandIn(StandIn):
    """`key`: the only one it takes."""

    def __init__(self, key: str = KEY, domain: str = DOMAIN) -> None:
        super().__init__()
        self.key = key
        self.hall = Hall(key, domain)
        self.recordings: dict[str, dict[str, Any]] = {}
        self.transcripts: dict[str, dict[str, Any]] = {}
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.dials = True
        """Whether the domain's plan has dial-out."""
        self.next: list[dict[str, Any]] = []
        """What goes wrong with the next requests, one each: `status`, `retry_after`, or `lost` (it is done, and the
        answer does not arrive)."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def rooms(self) -> dict[str, Room]:
        """The rooms of the domain, by name."""
        return self.hall.rooms

    async def start(self, port: int = 0) -> None:
        await super().start(port)
        self._tasks = [asyncio.create_task(self.hall.expire())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await super().stop()

    async def __aenter__(self) -> "DailyStandIn":
        await self.start()
        return self

    def calls(self, method: str, path: str) -> list[dict[str, Any]]:
        """What it was asked with this method for paths that end so."""
        return [one for one in self.requests if one["method"] == method and one["path"].endswith(path)]

    def routes(self) -> list[web.RouteDef]:
        def on(method: str, path: str, answer: Answer) -> web.RouteDef:
            return web.route(method, "/v1" + path, self._answered(answer))

        room = "/rooms/{room}"
        return [
            on("GET", "/", self._domain),
            on("POST", "/rooms", self._create),
            on("GET", "/rooms", self._list),
            on("GET", room, self._show),
            on("POST", room, self._change),
            on("DELETE", room, self._delete),
            on("GET", "/presence", self._everybody),
            on("GET", f"{room}/presence", self._presence),
            on("POST", f"{room}/eject", self._eject),
            on("POST", f"{room}/send-app-message", self._message),
            on("POST", f"{room}/recordings/start", self._record),
            on("POST", f"{room}/recordings/stop", self._record_no_more),
            on("POST", f"{room}/transcription/start", self._transcribe),
            on("POST", f"{room}/transcription/stop", self._transcribe_no_more),
            on("POST", f"{room}/dialOut/start", self._dial),
            on("POST", f"{room}/dialOut/stop", self._dial_no_more),
            on("GET", "/recordings", self._recordings),
            on("GET", "/recordings/{id}", self._recording),
            on("GET", "/recordings/{id}/access-link", self._recording_link),
            on("GET", "/transcript", self._transcripts),
            on("GET", "/transcript/{id}", self._transcript),
            on("GET", "/transcript/{id}/access-link", self._transcript_link),
            on("POST", "/meeting-tokens", self._mint),
            on("GET", "/meeting-tokens/{token}", self._validate),
            on("POST", "/webhooks", self._subscribe),
            web.get("/__room/{room}", self.hall.door),
            web.get("/__rooms", self._look),
            web.post("/__webhook", self._webhook),
        ]

    # -- every request ------------------------------------------------------------------------------------------------

    def _answered(self, answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answered(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = dict(request.headers)
            parsed: Any = None
            with contextlib.suppress(msgspec.MsgspecError):
                parsed = msgspec.json.decode(body) if body else None
            self.received(
                method=request.method, path=request.path, query=dict(request.query), headers=headers, body=parsed
            )
            one = self.next.pop(0) if self.next else {}
            if (wrong := await self._wrong(request, one)) is not None:
                return wrong
            try:
                self._admit(request)
                found = await answer(request)
            except Refused as refused:
                return self._error(refused.status, refused.info, refused.code)
            if one.get("lost") or self.faults.now.cut_after >= 0:
                hang_up(request)
            return web.json_response(found)

        return answered

    async def _wrong(self, request: web.Request, one: dict[str, Any]) -> web.StreamResponse | None:
        """What it was told to answer instead."""
        faults = self.faults.now
        if status := one.get("status") or faults.status:
            answer = self._error(status, "", faults.code)
            if after := one.get("retry_after", faults.retry_after):
                answer.headers["Retry-After"] = after
            return answer
        if faults.refuse:
            hang_up(request)
        if faults.mute:
            await forever()
        if faults.garbage:
            kind, body = GARBAGE[faults.garbage]
            return web.Response(body=body, content_type=kind)
        if faults.headers_only or faults.drip_s:
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            while faults.drip_s:
                await stream.write(b" ")
                await asyncio.sleep(faults.drip_s)
            await forever()
        await asyncio.sleep(faults.first_s + faults.slow_s)
        return None

    def _admit(self, request: web.Request) -> None:
        header = request.headers.get("Authorization", "")
        if not header.startswith("Bearer ") or not header.removeprefix("Bearer ").strip():
            raise Refused(400, "missing or malformed authorization header", "authorization-header-error")
        if header.removeprefix("Bearer ") != self.key:
            raise Refused(401)

    def _error(self, status: int, info: str = "", code: str = "") -> web.Response:
        body = {"error": code or CODES.get(status, "server-error")}
        return web.json_response(body | ({"info": info} if info else {}), status=status)

    async def _body(self, request: web.Request, kind: type[B]) -> B:
        raw = await request.read()
        try:
            return msgspec.json.decode(raw or b"{}", type=kind)
        except msgspec.ValidationError as error:
            raise Refused(400, str(error)) from None
        except msgspec.DecodeError:
            raise Refused(400, "the body is not JSON", "json-parsing-error") from None

    def _room(self, request: web.Request) -> Room:
        name = request.match_info["room"]
        if name not in self.rooms:
            raise Refused(404, f"room {name} not found")
        return self.rooms[name]

    def _page(self, request: web.Request, found: list[dict[str, Any]], key: str = "id") -> dict[str, Any]:
        """A page of a list, the newest first."""
        query = request.query
        try:
            limit = int(query.get("limit", LIMIT_MOST))
        except ValueError:
            raise Refused(400, "limit must be a number") from None
        ids = [one[key] for one in found]
        page = found
        if after := query.get("starting_after"):
            page = found[ids.index(after) + 1 :] if after in ids else []
        elif (before := query.get("ending_before")) and before != "OLDEST":
            page = found[: ids.index(before)] if before in ids else []
        return {"total_count": len(found), "data": page[: min(limit, LIMIT_MOST)]}

    # -- rooms --------------------------------------------------------------------------------------------------------

    async def _domain(self, request: web.Request) -> Any:
        return {"domain_name": self.hall.domain, "domain_id": self.hall.domain_id, "config": {}}

    async def _create(self, request: web.Request) -> Any:
        body = await self._body(request, RoomBody)
        name = body.name if isinstance(body.name, str) else secrets.token_urlsafe(15)
        if not NAME.fullmatch(name):
            raise Refused(400, "name contains invalid characters")
        if name in self.rooms:
            raise Refused(400, f"a room named {name} already exists")
        privacy = body.privacy if isinstance(body.privacy, str) else "public"
        url = f"https://{self.hall.domain}.daily.co/{name}"
        self.rooms[name] = Room(name, privacy, msgspec.to_builtins(body.properties), url)
        return self.rooms[name].described()

    async def _list(self, request: web.Request) -> Any:
        return self._page(request, [room.described() for room in reversed(self.rooms.values())])

    async def _show(self, request: web.Request) -> Any:
        return self._room(request).described()

    async def _change(self, request: web.Request) -> Any:
        room = self._room(request)
        body = await self._body(request, RoomBody)
        if isinstance(body.privacy, str):
            room.privacy = body.privacy
        for name, value in msgspec.to_builtins(body.properties).items():
            if value is None:
                room.config.pop(name, None)
            else:
                room.config[name] = value
        return room.described()

    async def _delete(self, request: web.Request) -> Any:
        room = self._room(request)
        del self.rooms[room.name]
        for guest in list(room.guests.values()):
            await self.hall.put_out(room, guest, "room-deleted")
        return {"deleted": True, "name": room.name}

    # -- tokens -------------------------------------------------------------------------------------------------------

    async def _mint(self, request: web.Request) -> Any:
        return {"token": self.hall.token((await self._body(request, TokenBody)).properties)}

    async def _validate(self, request: web.Request) -> Any:
        try:
            said = self.hall.read(request.match_info["token"])
        except jwt.PyJWTError as error:
            raise Refused(400, f"invalid token: {error}") from None
        long = {short: name for name, short in SHORT.items()}
        return {long[short]: value for short, value in said.items() if short in long}

    # -- presence -----------------------------------------------------------------------------------------------------

    async def _everybody(self, request: web.Request) -> Any:
        return {
            room.name: [guest.described(room.name) for guest in room.guests.values()]
            for room in self.rooms.values()
            if room.guests
        }

    async def _presence(self, request: web.Request) -> Any:
        room, query = self._room(request), request.query
        found = [guest.described(room.name) for guest in room.guests.values()]
        for name in ("userId", "userName"):
            if name in query:
                found = [one for one in found if one[name] == query[name]]
        return {"total_count": len(found), "data": found[: int(query.get("limit", LIMIT_MOST))]}

    async def _eject(self, request: web.Request) -> Any:
        room, body = self._room(request), await self._body(request, EjectBody)
        if body.ban:
            room.banned.update(body.user_ids)
        out = [guest for guest in room.guests.values() if guest.id in body.ids or guest.user_id in body.user_ids]
        for guest in out:
            await self.hall.put_out(room, guest, "ejected")
        return {"ejectedIds": [guest.id for guest in out]}

    async def _message(self, request: web.Request) -> Any:
        room, body = self._room(request), await self._body(request, AppMessageBody)
        await self.hall.tell(room, {"type": "app-message", "data": body.data, "sender": ""}, only=body.recipient)
        return {"sent": "true"}

    # -- recordings and transcripts -----------------------------------------------------------------------------------

    async def _record(self, request: web.Request) -> Any:
        room, body = self._room(request), await self._body(request, RecordingBody)
        allowed = room.config.get("enable_recording", [])
        if body.type not in ([allowed] if isinstance(allowed, str) else allowed):
            raise Refused(400, f"{body.type} recording is not enabled for this room")
        if not room.guests:
            raise Refused(400, f"{room.name} does not seem to be hosting a call currently")
        if room.recording:
            raise Refused(400, "has an active stream")
        room.recording = str(uuid.uuid4())
        self.recordings = {
            room.recording: {
                "id": room.recording,
                "room_name": room.name,
                "start_ts": int(time.time()),
                "status": "in-progress",
                "max_participants": len(room.guests),
                "duration": 0,
                "mtgSessionId": "m-" + room.name,
            },
            **self.recordings,
        }
        return {"status": "sent"}

    async def _record_no_more(self, request: web.Request) -> Any:
        room, _ = self._room(request), await self._body(request, StopBody)
        if not room.recording:
            raise Refused(400, f"no active stream in {room.name}")
        if room.recording in self.recordings:
            one = self.recordings[room.recording]
            one |= {"status": "finished", "duration": int(time.time()) - one["start_ts"]}
        room.recording = ""
        return {"status": "sent"}

    async def _recordings(self, request: web.Request) -> Any:
        name = request.query.get("room_name")
        return self._page(request, [one for one in self.recordings.values() if name in (None, one["room_name"])])

    def _one(self, request: web.Request, found: dict[str, dict[str, Any]], what: str) -> dict[str, Any]:
        identifier = request.match_info["id"]
        if identifier not in found:
            raise Refused(404, f"{what} {identifier} not found")
        return found[identifier]

    async def _recording(self, request: web.Request) -> Any:
        return self._one(request, self.recordings, "recording")

    async def _recording_link(self, request: web.Request) -> Any:
        one = self._one(request, self.recordings, "recording")
        link = f"https://daily-test.s3.example/{one['id']}.mp4?signed=yes"
        return {"download_link": link, "expires": int(time.time()) + 3600}

    async def _transcribe(self, request: web.Request) -> Any:
        room, _ = self._room(request), await self._body(request, TranscriptionBody)
        if not room.guests:
            raise Refused(400, f"{room.name} does not seem to be hosting a call currently")
        room.transcript = str(uuid.uuid4())
        if room.config.get("enable_transcription_storage"):
            self.transcripts = {
                room.transcript: {
                    "transcriptId": room.transcript,
                    "domainId": self.hall.domain_id,
                    "roomId": room.id,
                    "mtgSessionId": "m-" + room.name,
                    "status": "t_in_progress",
                    "duration": 0,
                    "created_at": iso(time.time()),
                    "updated_at": iso(time.time()),
                },
                **self.transcripts,
            }
        return {"sent": "true"}

    async def _transcribe_no_more(self, request: web.Request) -> Any:
        room, _ = self._room(request), await self._body(request, StopBody)
        if room.transcript in self.transcripts:
            self.transcripts[room.transcript] |= {"status": "t_finished", "isVttAvailable": True, "duration": 3}
        room.transcript = ""
        return {"sent": "true"}

    async def _transcripts(self, request: web.Request) -> Any:
        room = request.query.get("roomId")
        found = [one for one in self.transcripts.values() if room in (None, one["roomId"])]
        return self._page(request, found, "transcriptId")

    async def _transcript(self, request: web.Request) -> Any:
        return self._one(request, self.transcripts, "transcript")

    async def _transcript_link(self, request: web.Request) -> Any:
        one = self._one(request, self.transcripts, "transcript")
        link = f"https://daily-test.s3.example/{one['transcriptId']}.vtt?signed=yes"
        return {"transcriptId": one["transcriptId"], "link": link}

    # -- dial-out -----------------------------------------------------------------------------------------------------

    async def _dial(self, request: web.Request) -> Any:
        room, body = self._room(request), await self._body(request, DialOutBody)
        whom = body.phoneNumber if isinstance(body.phoneNumber, str) else str(body.sipUri)
        if not room.config.get("enable_dialout"):
            raise Refused(400, "dialout is not enabled for this room")
        if not self.dials:
            raise Refused(400, f"this domain may not dial out to {whom}")
        if not room.guests:
            raise Refused(404, f"room {room.name} is not hosting a call")
        session = str(uuid.uuid4())
        guest = self.hall.sit(room.name, name=body.displayName if isinstance(body.displayName, str) else whom)
        room.dialled[session] = guest.id
        await self.hall.tell(room, {"type": "participant-joined", "participant": guest.seen()}, besides=guest.id)
        return {"ok": "true", "sessionId": session}

    async def _dial_no_more(self, request: web.Request) -> Any:
        room, body = self._room(request), await self._body(request, DialOutStopBody)
        guest = room.guests.get(room.dialled.pop(body.sessionId, ""))
        if guest is None:
            raise Refused(404, "no dialout to stop")
        await self.hall.put_out(room, guest, "leftCall")
        return {"ok": "true"}

    # -- webhooks -----------------------------------------------------------------------------------------------------

    async def _subscribe(self, request: web.Request) -> Any:
        body = await self._body(request, WebhookBody)
        secret = body.hmac or base64.b64encode(secrets.token_bytes(32)).decode()
        if (await send_webhook(body.url, secret, {"test": "test"}))[0] != 200:
            raise Refused(400, "non-200 status code returned from webhook endpoint")
        identifier = str(uuid.uuid4())
        self.webhooks[identifier] = {"uuid": identifier, "hmac": secret, **msgspec.to_builtins(body)} | {
            "hmac": secret,
            "state": "ACTIVE",
            "failedCount": 0,
            "domainId": self.hall.domain_id,
        }
        return self.webhooks[identifier]

    async def _webhook(self, request: web.Request) -> web.Response:
        """`POST /__webhook {"url", "secret", "event"}`: send this event, signed."""
        told = msgspec.json.decode(await request.read())
        status, _ = await send_webhook(told["url"], told["secret"], told["event"])
        return web.json_response({"status": status})

    async def _look(self, request: web.Request) -> web.Response:
        """`GET /__rooms`: every room, with who is there, as a test wants to see it."""
        found = {
            name: room.described()
            | {
                "guests": [guest.described(name) | {"owner": guest.owner} for guest in room.guests.values()],
                "recording": room.recording,
                "transcript": room.transcript,
            }
            for name, room in self.rooms.items()
        }
        return web.json_response({"rooms": found, "messages": self.hall.messages})


def signed(secret: str, body: bytes, timestamp: str) -> str:
    """A webhook's signature."""
    digest = hmac.new(base64.b64decode(secret), timestamp.encode() + b"." + body, hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


async def send_webhook(url: str, secret: str, event: dict[str, Any], *, at_s: float | None = None) -> tuple[int, Any]:
    """Send an event as Daily does, and tell with which status it was taken, and what was said to it."""
    body = msgspec.json.encode(event)
    timestamp = str(int((time.time() if at_s is None else at_s) * 1000))
    headers = {
        "Content-Type": "application/json",
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": signed(secret, body, timestamp),
    }
    async with aiohttp.ClientSession() as web_session, web_session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


if __name__ == "__main__":
    main(DailyStandIn)
