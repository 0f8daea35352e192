"""Daily's REST API: https://docs.daily.co/reference/rest-api.

Every call stands under one deadline, inside of which what is too much (429) or out of order (5xx, unreachable, silent)
is asked again, later each time. What Daily says no to is told at once, with the setting that is wrong.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from meshag import clock
from meshag.connectors.http import ERROR_BYTES, Http, encoded, failures, retry_after_s
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

DEADLINE_S = 8.0
"""A call, with all its attempts, while somebody waits for the answer."""

PATIENT_S = 60.0
"""A call that nobody waits for: Daily takes no more than two deletions a second."""

ATTEMPT_S = 4.0
"""One attempt of it."""

FIRST_WAIT_S = 0.25
"""Before the second attempt, at most; twice as long before each one after it."""

LONGEST_WAIT_S = 4.0
"""No pause is longer, unless Daily asks for it."""

ANSWER_BYTES = 4 * 1024 * 1024
"""An answer is shorter than this."""

PAGE = 100
"""As many as Daily lists at once."""

INFO_CHARS = 200
"""As much of Daily's own words is repeated."""

NO_DIAL_OUT = (
    "Daily does not dial: the plan of this domain has no dial-out, "
    "or Daily does not take this number or caller_id, or is dialling already"
)
"""What 400 and 403 to a dial-out mean."""


class Missing(ProviderRejected):
    """What was asked for is not there (404)."""


class Taken(ProviderRejected):
    """There is a room of that name."""


class RoomInfo(msgspec.Struct):
    """A room, as Daily tells it."""

    id: str
    name: str
    url: str
    privacy: str = "public"
    created_at: str = ""
    config: dict[str, Any] = {}


class Present(msgspec.Struct, rename="camel"):
    """Somebody in a room, as Daily tells it."""

    id: str
    user_id: str | None = None
    user_name: str | None = None
    join_time: str = ""
    duration: float = 0


class RecordingInfo(msgspec.Struct):
    """A recording, as Daily tells it."""

    id: str
    room_name: str = ""
    start_ts: float = 0
    status: str = ""
    duration: float | None = 0


class TranscriptInfo(msgspec.Struct, rename="camel"):
    """A transcript, as Daily tells it."""

    transcript_id: str
    room_id: str = ""
    status: str = ""
    duration: float | None = 0


class DomainInfo(msgspec.Struct):
    """The domain that a key belongs to."""

    domain_name: str
    domain_id: str = ""


class _Rooms(msgspec.Struct):
    data: list[RoomInfo]


class _Presence(msgspec.Struct):
    data: list[Present]


class _Recordings(msgspec.Struct):
    data: list[RecordingInfo]


class _Transcripts(msgspec.Struct):
    data: list[TranscriptInfo]


class _Token(msgspec.Struct):
    token: str


class _Ejected(msgspec.Struct, rename={"ids": "ejectedIds"}):
    ids: list[str] = []


class _RecordingLink(msgspec.Struct):
    download_link: str
    expires: float = 0


class _TranscriptLink(msgspec.Struct):
    link: str


class _Dialled(msgspec.Struct, rename="camel"):
    session_id: str


class _Error(msgspec.Struct):
    error: str = ""
    info: str = ""


T = TypeVar("T")


class DailyApi:
    """One key's view of Daily. Every method raises ConnectorError."""

    def __init__(self, key: str, base_url: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._key = key
        self._base = base_url.rstrip("/")
        self._deadline_s = deadline_s
        self._http = Http("daily")

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._http.aclose()

    # -- rooms --------------------------------------------------------------------------------------------------------

    async def domain(self) -> DomainInfo:
        """The domain of the key."""
        return await self._call("GET", "/", DomainInfo)

    async def create_room(self, name: str, privacy: str, properties: Mapping[str, Any]) -> RoomInfo:
        """Make a room. Its name must be of the caller's own making, used once: a second attempt may find it made."""
        body = {"name": name, "privacy": privacy, "properties": properties}
        try:
            return await self._call("POST", "/rooms", RoomInfo, body)
        except Taken:  # by an attempt whose answer was lost: nobody else knows the name
            return await self._call(
                "POST", f"/rooms/{quote(name)}", RoomInfo, {"privacy": privacy, "properties": properties}
            )

    async def change_room(self, name: str, properties: Mapping[str, Any]) -> RoomInfo:
        """Change some of a room's properties. Raises Missing."""
        return await self._call("POST", f"/rooms/{quote(name)}", RoomInfo, {"properties": properties})

    async def delete_room(self, name: str) -> None:
        """Delete a room and put out whoever is in it. One that is gone already is no error. Takes its time."""
        try:
            await self._call("DELETE", f"/rooms/{quote(name)}", dict, deadline_s=PATIENT_S)
        except Missing:
            pass

    async def rooms(self) -> AsyncIterator[RoomInfo]:
        """Every room of the domain, the newest first."""
        query: dict[str, Any] = {"limit": PAGE}
        while True:
            page = (await self._call("GET", "/rooms", _Rooms, query=query)).data
            for room in page:
                yield room
            if len(page) < PAGE:
                return
            query["starting_after"] = page[-1].id

    async def token(self, properties: Mapping[str, Any]) -> str:
        """A meeting token. Without `room_name` it would open every room of the domain, so it must have one."""
        assert properties.get("room_name"), "a token without a room opens all of them"
        assert properties.get("exp"), "a token without an expiry is valid for ever"
        return (await self._call("POST", "/meeting-tokens", _Token, {"properties": properties})).token

    # -- who is there -------------------------------------------------------------------------------------------------

    async def presence(self, name: str) -> list[Present]:
        """Who is in a room, up to 15 seconds ago. Raises Missing."""
        return (await self._call("GET", f"/rooms/{quote(name)}/presence", _Presence)).data

    async def eject(self, name: str, ids: Sequence[str]) -> list[str]:
        """Put out at most a hundred participants; tells the ids of those who were there. Raises Missing."""
        return (await self._call("POST", f"/rooms/{quote(name)}/eject", _Ejected, {"ids": list(ids)})).ids

    # -- what is kept -------------------------------------------------------------------------------------------------

    async def start_recording(self, name: str, kind: str) -> None:
        """Begin to record what happens in a room. Raises Missing."""
        await self._call("POST", f"/rooms/{quote(name)}/recordings/start", dict, {"type": kind})

    async def stop_recording(self, name: str) -> None:
        """Stop. Raises Missing."""
        await self._call("POST", f"/rooms/{quote(name)}/recordings/stop", dict, {})

    async def recordings(self, name: str) -> list[RecordingInfo]:
        """A room's recordings, the newest first, at most a hundred."""
        return (await self._call("GET", "/recordings", _Recordings, query={"room_name": name, "limit": PAGE})).data

    async def recording(self, recording: str) -> RecordingInfo:
        """One recording, of whichever room. Raises Missing."""
        return await self._call("GET", f"/recordings/{quote(recording, safe='')}", RecordingInfo)

    async def recording_link(self, recording: str) -> tuple[str, float]:
        """Where a recording can be had, and until when (Unix time). Raises Missing."""
        found = await self._call("GET", f"/recordings/{quote(recording, safe='')}/access-link", _RecordingLink)
        return found.download_link, found.expires

    async def start_transcription(self, name: str) -> None:
        """Have what is said in a room written down. Raises Missing."""
        await self._call("POST", f"/rooms/{quote(name)}/transcription/start", dict, {})

    async def stop_transcription(self, name: str) -> None:
        """Stop. Raises Missing."""
        await self._call("POST", f"/rooms/{quote(name)}/transcription/stop", dict, {})

    async def transcripts(self, room_id: str) -> list[TranscriptInfo]:
        """A room's transcripts, the newest first, at most a hundred. `room_id`: not its name."""
        return (await self._call("GET", "/transcript", _Transcripts, query={"roomId": room_id, "limit": PAGE})).data

    async def transcript(self, transcript: str) -> TranscriptInfo:
        """One transcript, of whichever room. Raises Missing."""
        return await self._call("GET", f"/transcript/{quote(transcript, safe='')}", TranscriptInfo)

    async def transcript_link(self, transcript: str) -> str:
        """Where a transcript can be had. Raises Missing."""
        path = f"/transcript/{quote(transcript, safe='')}/access-link"
        return (await self._call("GET", path, _TranscriptLink)).link

    # -- who is called ------------------------------------------------------------------------------------------------

    async def dial_out(self, name: str, body: Mapping[str, Any]) -> str:
        """Call somebody into a room; tells the call's id. `body` in Daily's words, which no error repeats.

        Asked once, but where Daily says that it did nothing (429): a second attempt would ring twice.
        """
        path = f"/rooms/{quote(name)}/dialOut/start"
        try:
            return (await self._call("POST", path, _Dialled, body, once=True, refused=NO_DIAL_OUT)).session_id
        except Missing as error:
            raise ProviderUnavailable(f"{error}: nobody is in the room yet, or it is gone") from None
        except ProviderLimited:
            raise
        except (ProviderUnavailable, ProviderTimeout, ProviderGarbage) as error:
            raise type(error)(f"{error}; whether it dials is not known", retryable=False) from None

    async def hang_up(self, name: str, call: str) -> None:
        """End such a call. Raises Missing."""
        await self._call("POST", f"/rooms/{quote(name)}/dialOut/stop", dict, {"sessionId": call})

    # -- one call -----------------------------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
        once: bool = False,
        refused: str = "",
    ) -> T:
        """Ask until there is an answer, or the deadline has passed. May be cancelled at any await.

        `once`: only what Daily was too busy to do (429) is asked again. `refused`: what a no means, in place of
        Daily's words, which may repeat what the body says.
        """
        end_s = clock.monotonic_s() + (deadline_s or self._deadline_s)
        url = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        wait_s = FIRST_WAIT_S
        before: ConnectorError | None = None
        while True:
            try:
                with failures("daily"):
                    left_s = end_s - clock.monotonic_s()
                    async with asyncio.timeout(left_s if once else min(ATTEMPT_S, left_s)):
                        raw = await self._once(method, url, body, refused)
                return _read(raw, kind)
            except (ProviderUnavailable, ProviderTimeout) as error:
                if once and not isinstance(error, ProviderLimited):
                    raise _named(error) from error
                pause_s = random.uniform(wait_s / 2, wait_s)
                if isinstance(error, ProviderLimited) and error.retry_after_s is not None:
                    pause_s += error.retry_after_s
                if clock.monotonic_s() + pause_s >= end_s:
                    if before is not None and isinstance(error, ProviderTimeout):
                        raise _named(before) from error  # the last attempt had no time: what was wrong, is known
                    raise _named(error) from error
                before = error
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _once(self, method: str, url: str, body: Any, refused: str = "") -> bytes:
        headers = {"Authorization": f"Bearer {self._key}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = encoded(body)
        limit = aiohttp.ClientTimeout(total=None)
        async with self._http.session.request(
            method, url, headers=headers, data=data, allow_redirects=False, timeout=limit
        ) as answer:
            if answer.status != 200:
                raise self._refusal(answer.status, await _most(answer, ERROR_BYTES), answer.headers, refused)
            raw = await _most(answer, ANSWER_BYTES + 1)
            if len(raw) > ANSWER_BYTES:
                raise ProviderGarbage("daily: an endless answer")
            return raw

    def _refusal(self, status: int, body: bytes, headers: Mapping[str, str], refused: str = "") -> ConnectorError:
        """What an error's answer means: `{"error": code, "info": words}`. `refused`: words in place of those."""
        try:
            said = msgspec.json.decode(body, type=_Error)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            said = _Error()
        code = said.error if said.error.replace("-", "").isalnum() and len(said.error) <= 60 else ""
        what = f"daily: HTTP {status}" + (f" {code}" if code else "")
        if status == 401 or code in ("authentication-error", "authorization-header-error"):
            return ProviderRejected(f"{what}: Daily does not know DAILY_API_KEY", code="provider_unauthorized")
        if status == 403:
            words = refused or "DAILY_API_KEY may not do this"
            return ProviderRejected(f"{what}: {words}", code="provider_unauthorized")
        if status == 404:
            return Missing(what)
        if status == 429:
            return ProviderLimited(what, retry_after_s=retry_after_s(headers))
        if status >= 500 or status in (408, 425):
            return ProviderUnavailable(what)
        if not 400 <= status < 500:
            return ProviderGarbage(what)
        info = refused or self._harmless(said.info)
        if "already exists" in info:
            return Taken(what)
        return ProviderRejected(what + (f": {info}" if info else ""))

    def _harmless(self, info: str) -> str:
        """Daily's words, which may name a field or a room; nothing when they hold the key or are no plain line."""
        if not info.isascii() or not info.isprintable() or (self._key and self._key in info):
            return ""
        return info[:INFO_CHARS]


async def _most(answer: aiohttp.ClientResponse, size: int) -> bytes:
    pieces, read = [], 0
    async for piece in answer.content.iter_any():
        pieces.append(piece)
        read += len(piece)
        if read >= size:
            answer.close()
            break
    return b"".join(pieces)[:size]


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise ProviderGarbage("daily: an answer of another shape") from None


def _named(error: ConnectorError) -> ConnectorError:
    """The same failure, in words for whoever has to mend it."""
    if isinstance(error, ProviderLimited):
        return ProviderLimited(f"{error}: too many requests for this Daily domain", retry_after_s=error.retry_after_s)
    if "HTTP" in str(error):
        return type(error)(f"{error}: Daily is out of order")
    return type(error)(f"{error}: Daily does not answer (DAILY_BASE_URL)")
