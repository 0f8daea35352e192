"""What is said in a session, over HTTP.

GET    /sessions/{id}/history       what was said, turn by turn
GET    /sessions/{id}/transcript    the same with times: JSON, text or WebVTT
POST   /sessions/{id}/say           the agent says this
POST   /sessions/{id}/interrupt     the agent is silent at once
"""

import secrets

import msgspec
from aiohttp import web

from meshag.api import access
from meshag.api.problems import problem
from meshag.api.rooms import rfc3339
from meshag.api.service import WORKER, announce, session_id
from meshag.errors import ConfigError
from meshag.frames import Hush, Say
from meshag.sessions.config import can_say
from meshag.sessions.requests import SayRequest, parse
from meshag.sessions.store import SessionRecord
from meshag.stages.worker import Worker
from meshag.turns.history import decode
from meshag.turns.transcript import as_text, as_vtt, lines

FORMATS = {"json": "application/json", "text": "text/plain", "vtt": "text/vtt"}
"""What a transcript can be, by name: its media type."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [
        web.get("/sessions/{id}/history", history),
        web.get("/sessions/{id}/transcript", transcript),
        web.post("/sessions/{id}/say", say),
        web.post("/sessions/{id}/interrupt", interrupt),
    ]


@access.read
async def history(request: web.Request) -> web.Response:
    """What was said, turn by turn, as far as the caller heard it."""
    worker = request.app[WORKER]
    session = session_id(request)
    await worker.store.load(session)
    turns = [msgspec.json.decode(data) for data in await worker.store.history(session)]
    return web.json_response({"session_id": session, "turns": turns})


@access.read
async def transcript(request: web.Request) -> web.Response:
    """What was said, with times from the session's creation. `?format=json|text|vtt`, or what `Accept` asks for."""
    worker = request.app[WORKER]
    wanted = request.query.get("format") or _accepted(request.headers.get("Accept", ""))
    if wanted is None:
        return problem(406, "not_acceptable", f"a transcript is {', '.join(FORMATS.values())}")
    if wanted not in FORMATS:
        raise ConfigError("there is no such format", path="format", fix=f"one of {', '.join(FORMATS)}")
    record = await worker.store.load(session_id(request))
    exchanges = [decode(data) for data in await worker.store.history(record.id)]
    said = lines(exchanges, int(record.created_at_s * 1e9))
    headers = {"Vary": "Accept"}
    if wanted == "json":
        started_at = rfc3339(record.created_at_s)
        body = {"session_id": record.id, "started_at": started_at, "lines": msgspec.to_builtins(said)}
        return web.json_response(body, headers=headers)
    text = as_vtt(said) if wanted == "vtt" else as_text(said)
    return web.Response(text=text, content_type=FORMATS[wanted], charset="utf-8", headers=headers)


@access.write
async def say(request: web.Request) -> web.Response:
    """The agent says this to the caller, in a turn of its own."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    asked = parse(SayRequest, await request.read())
    if not can_say(record.request.config):
        raise ConfigError(
            "nothing that this pipeline's agent is told is heard by the caller",
            path="config.pipeline.flow",
            fix='it needs {"from": "llm", "to": "tts", "stream": "text"} and tts to transport',
            code="say_not_possible",
        )
    if not await _listens(worker, record):
        return problem(409, "nobody_listening", "no caller is connected: what the agent says now would be lost")
    await announce(worker, record.id, Say(text=asked.text, id=secrets.token_hex(8), interrupt=asked.interrupt))
    return web.json_response({"session_id": record.id, "accepted": True}, status=202)


@access.write
async def interrupt(request: web.Request) -> web.Response:
    """The agent is silent at once, and forgets what it was still to say. Where it is silent, that is no error."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    await announce(worker, record.id, Hush())
    return web.json_response({"session_id": record.id, "accepted": True}, status=202)


async def _listens(worker: Worker, record: SessionRecord) -> bool:
    """Whether a transport worker that lives has the session's caller."""
    lease = await worker.store.lease(record.id, "transport")
    return record.status != "idle" and lease is not None and worker.fleet.is_alive(lease.worker)


def _accepted(accept: str) -> str | None:
    """The format that an `Accept` likes best; None: it takes none of them."""
    best, found = 0.0, None
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, _, parameters = part.strip().lower().partition(";")
        liked = _liked(parameters)
        fits = [name for name, kind in FORMATS.items() if media.strip() in (kind, f"{kind.partition('/')[0]}/*", "*/*")]
        if fits and liked > best:
            best, found = liked, fits[0]
    return found


def _liked(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
