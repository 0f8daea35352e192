"""Who is in a session's room and what is kept of it, over HTTP, on the transport service.

GET    /sessions/{id}/participants                    who is there
POST   /sessions/{id}/participants/eject              put some of them out
GET    /sessions/{id}/recordings                      what was recorded
POST   /sessions/{id}/recordings/start                begin to record
POST   /sessions/{id}/recordings/stop                 stop
GET    /sessions/{id}/recordings/{recording}/link     where a recording can be had for a while
GET    /sessions/{id}/transcripts                     what was written down by the room's provider
POST   /sessions/{id}/transcription/start             have it written down
POST   /sessions/{id}/transcription/stop              stop
GET    /sessions/{id}/transcripts/{transcript}/link   where a transcript can be had for a while
POST   /sessions/{id}/dial-out                        call somebody into the room
DELETE /sessions/{id}/dial-out/{call_id}              hang up
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from meshag.api import access
from meshag.api.problems import problem
from meshag.api.service import WORKER, session_id
from meshag.connectors.contracts import Dial, Link, Participant, Rooms
from meshag.errors import ConfigError, MeshError
from meshag.sessions.requests import DialOutRequest, parse
from meshag.sessions.store import SessionRecord
from meshag.sessions.strict_json import read_json
from meshag.stages.attending import connector_of

EJECTED_MOST = 100
"""Participants put out at once."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    at = "/sessions/{id}"
    return [
        web.get(f"{at}/participants", participants),
        web.post(f"{at}/participants/eject", eject),
        web.get(f"{at}/recordings", recordings),
        web.post(f"{at}/recordings/start", start_recording),
        web.post(f"{at}/recordings/stop", stop_recording),
        web.get(f"{at}/recordings/{{recording}}/link", recording_link),
        web.get(f"{at}/transcripts", transcripts),
        web.post(f"{at}/transcription/start", start_transcription),
        web.post(f"{at}/transcription/stop", stop_transcription),
        web.get(f"{at}/transcripts/{{transcript}}/link", transcript_link),
        web.post(f"{at}/dial-out", dial_out),
        web.delete(f"{at}/dial-out/{{call_id}}", hang_up),
    ]


async def _room(request: web.Request) -> tuple[SessionRecord, Rooms | None]:
    """The session, and what its transport offers. Raises SessionError."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    connector = connector_of(worker, record.room) if record.room else None
    return record, connector if isinstance(connector, Rooms) else None


async def _in_room(request: web.Request) -> tuple[SessionRecord, Rooms]:
    """The same, of a session that meets in a room. Raises MeshError of one that does not."""
    record, rooms = await _room(request)
    if rooms is None:
        title = "this session's transport does not offer that: its callers meet in no room"
        raise MeshError(title, code="not_offered_by_transport")
    return record, rooms


@access.read
async def participants(request: web.Request) -> web.Response:
    """Who is in the session: for a room everybody, the agent among them; for a WebSocket the caller."""
    record, rooms = await _room(request)
    if rooms is not None:
        found = [asdict(one) for one in await rooms.participants(record.room)]
    else:
        lease = await request.app[WORKER].store.lease(record.id, "transport")
        there = [lease] if lease is not None and record.status == "live" else []
        found = [asdict(Participant(f"caller-{one.epoch}")) for one in there]
    return web.json_response({"session_id": record.id, "participants": found})


@access.write
async def eject(request: web.Request) -> web.Response:
    """Put participants out: `{"ids": […]}`, at most a hundred. Answers with the ids of those who were there."""
    body = read_json(await request.read())
    ids = body.get("ids") if isinstance(body, dict) else None
    if (
        not isinstance(ids, list)
        or not 1 <= len(ids) <= EJECTED_MOST
        or not all(isinstance(one, str) and _ID.fullmatch(one) for one in ids)
    ):
        raise ConfigError(
            f"ids is not a list of 1 to {EJECTED_MOST} participants' ids", path="ids", fix="see GET …/participants"
        )
    record, rooms = await _in_room(request)
    return web.json_response({"session_id": record.id, "ejected": await rooms.eject(record.room, ids)})


@access.read
async def recordings(request: web.Request) -> web.Response:
    """The room's recordings, the newest first."""
    record, rooms = await _in_room(request)
    found = [asdict(one) for one in await rooms.recordings(record.room)]
    return web.json_response({"session_id": record.id, "recordings": found})


@access.read
async def transcripts(request: web.Request) -> web.Response:
    """The transcripts that the room's provider keeps, the newest first."""
    record, rooms = await _in_room(request)
    found = [asdict(one) for one in await rooms.transcripts(record.room)]
    return web.json_response({"session_id": record.id, "transcripts": found})


async def _asked(request: web.Request, ask: Callable[[Rooms, dict[str, Any]], Awaitable[None]]) -> web.Response:
    record, rooms = await _in_room(request)
    await ask(rooms, record.room)
    return web.json_response({"session_id": record.id, "status": "asked"}, status=202)


@access.write
async def start_recording(request: web.Request) -> web.Response:
    """Begin to record. 202: the provider was asked; the event `recording_started` says when it has begun."""
    return await _asked(request, lambda rooms, room: rooms.start_recording(room))


@access.write
async def stop_recording(request: web.Request) -> web.Response:
    """Stop recording."""
    return await _asked(request, lambda rooms, room: rooms.stop_recording(room))


@access.write
async def start_transcription(request: web.Request) -> web.Response:
    """Have the room's provider write down what is said, beside what the session's own recogniser hears."""
    return await _asked(request, lambda rooms, room: rooms.start_transcription(room))


@access.write
async def stop_transcription(request: web.Request) -> web.Response:
    """Stop that."""
    return await _asked(request, lambda rooms, room: rooms.stop_transcription(room))


async def _link(
    request: web.Request, what: str, find: Callable[[Rooms, dict[str, Any], str], Awaitable[Link | None]]
) -> web.Response:
    record, rooms = await _in_room(request)
    wanted = request.match_info[what]
    link = await find(rooms, record.room, wanted) if _ID.fullmatch(wanted) else None
    if link is None:
        return problem(404, f"{what}_not_found", f"this session has no such {what}")
    return web.json_response({what: wanted, "url": link.url, "expires_at_s": link.expires_at_s})


@access.read
async def recording_link(request: web.Request) -> web.Response:
    """Where a recording can be had. Whoever has the address has the recording, until it expires."""
    return await _link(request, "recording", lambda rooms, room, one: rooms.recording_link(room, one))


@access.read
async def transcript_link(request: web.Request) -> web.Response:
    """Where a transcript can be had (WebVTT). Whoever has the address has the transcript, until it expires."""
    return await _link(request, "transcript", lambda rooms, room, one: rooms.transcript_link(room, one))


@access.write
async def dial_out(request: web.Request) -> web.Response:
    """Call somebody into the room, by telephone or SIP. Answers with the call's id, by which it is hung up."""
    asked = parse(DialOutRequest, await request.read())
    record, rooms = await _in_room(request)
    dial = Dial(asked.phone_number or "", asked.sip_uri or "", asked.display_name, asked.caller_id)
    return web.json_response({"call_id": await rooms.dial_out(record.room, dial)}, status=201)


@access.write
async def hang_up(request: web.Request) -> web.Response:
    """Hang up on somebody who was called."""
    record, rooms = await _in_room(request)
    call = request.match_info["call_id"]
    if not _ID.fullmatch(call) or not await rooms.hang_up(record.room, call):
        return problem(404, "call_not_found", "this session has no such call")
    return web.Response(status=204)
