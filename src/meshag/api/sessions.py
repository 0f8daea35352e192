"""Sessions over HTTP, on the transport service.

POST   /sessions/with-config     make one
GET    /sessions                 the newest
GET    /sessions/{id}            one: status, configuration, owners
PATCH  /sessions/{id}/config     change its configuration from the next turn on
POST   /sessions/{id}/extend     let it live longer
POST   /sessions/{id}/token      another token for its caller
GET    /sessions/{id}/history    what was said
DELETE /sessions/{id}            end it
GET    /sessions/{id}/stream     join it over a WebSocket
"""

import asyncio
import re
import secrets
from typing import Any

import msgspec
import structlog
from aiohttp import web

from meshag import clock, subjects
from meshag.api.service import WORKER
from meshag.audio import RATES_HZ
from meshag.connectors.contracts import TransportConnector
from meshag.connectors.states import provider_problems, provider_state
from meshag.connectors.transports import websocket
from meshag.errors import BusError, ConfigError, MeshError, OverloadError, SessionError
from meshag.frames import ConfigChanged, Frame, SessionEnded, encode
from meshag.ids import SessionId, new_session_id, parse_session_id
from meshag.sessions import tokens
from meshag.sessions.config import SessionRequest, effective, parse_request, patched, stages_of
from meshag.sessions.problems import ConfigProblems
from meshag.sessions.providers import ProviderState
from meshag.sessions.store import SessionRecord
from meshag.sessions.strict_json import read_json
from meshag.stages.transport import Switchboard, ensure_owners
from meshag.stages.worker import Worker
from meshag.subjects import STAGES, Stage

log = structlog.get_logger("meshag.api")

SWITCHBOARD = web.AppKey("switchboard", Switchboard)
SECRET = web.AppKey("secret", str)

LATE_FRAMES_S = 2.0
"""After a session's end its owners may still say a word; then its journal is purged."""

_background: set[asyncio.Task[None]] = set()

_changing = asyncio.Lock()
"""One change of a configuration at a time: each is made of what the one before it has stored."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [
        web.post("/sessions/with-config", create),
        web.get("/sessions", listing),
        web.get("/sessions/{id}", show),
        web.patch("/sessions/{id}/config", change),
        web.post("/sessions/{id}/extend", extend),
        web.post("/sessions/{id}/token", another_token),
        web.get("/sessions/{id}/history", history),
        web.delete("/sessions/{id}", end),
        web.get("/sessions/{id}/stream", stream),
    ]


async def create(request: web.Request) -> web.Response:
    """Check the configuration, store it, find an owner for each stage, say how to join."""
    worker = request.app[WORKER]
    asked = parse_request(await request.read())
    _check(worker, asked)
    session = new_session_id()
    ttl_s = asked.ttl_s or worker.settings.session_ttl_s
    record = await worker.store.create(session, asked, ttl_s)
    try:
        await ensure_owners(worker, record)
        chosen = effective(asked.config, "transport", lambda name: _state(worker, "transport", name).available)[0]
        connector = worker.registry.get("transport", chosen)
        assert isinstance(connector, TransportConnector)
        invitation = await connector.invite(session, _base_url(request), _sign(request, session))
    except BaseException:
        await _end(worker, session, "failed")
        raise
    log.info("session_created", session=session, pipeline=asked.config.pipeline.name)
    body = {
        "session_id": session,
        "room_url": invitation.room_url,
        "token": invitation.token,
        "config_stored": True,
        **invitation.details,
    }
    return web.json_response(body, status=201, headers={"Location": f"/sessions/{session}"})


async def listing(request: web.Request) -> web.Response:
    """The newest sessions. `?limit=`: 1 to 1,000, default 100."""
    worker = request.app[WORKER]
    try:
        limit = int(request.query.get("limit", "100"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 1000:
        raise ConfigError("limit is not a number from 1 to 1000", path="limit", fix="for example ?limit=100")
    found = []
    for session in await worker.store.ids(limit=limit):
        try:
            found.append(_summary(await worker.store.load(session)))
        except SessionError:
            continue  # ended meanwhile
    return web.json_response({"sessions": found})


async def show(request: web.Request) -> web.Response:
    """One session."""
    worker = request.app[WORKER]
    record = await worker.store.load(_id(request))
    owners: dict[str, object] = {}
    for stage in (*stages_of(record.request.config), "transport"):
        lease = await worker.store.lease(record.id, stage)
        if lease is not None:
            alive = worker.fleet.is_alive(lease.worker)
            owners[stage] = {"worker": lease.worker, "epoch": lease.epoch, "alive": alive}
    body = _summary(record) | {
        "version": record.version,
        "expires_in_s": await worker.store.remaining_s(record.id),
        "owners": owners,
        **record.request.model_dump(by_alias=True, mode="json"),
    }
    return web.json_response(body)


async def change(request: web.Request) -> web.Response:
    """Change what was asked for by a JSON merge patch of the same document. It holds from the next turn on."""
    worker = request.app[WORKER]
    session, patch = _id(request), read_json(await request.read())
    async with _changing:
        record = await worker.store.load(session)
        asked = patched(record.request, patch)
        _check(worker, asked)
        if asked != record.request:
            before, record = record, await worker.store.change_config(record, asked)
            if asked.ttl_s != before.request.ttl_s:
                record = await worker.store.extend(record, asked.ttl_s or worker.settings.session_ttl_s)
            await _announce(worker, record.id, ConfigChanged(version=record.version))
    return web.json_response(
        {
            "session_id": record.id,
            "version": record.version,
            "config": asked.config.model_dump(by_alias=True, mode="json"),
        }
    )


async def extend(request: web.Request) -> web.Response:
    """Let the session live `ttl_s` seconds after its last sign of life, beginning now."""
    worker = request.app[WORKER]
    record = await worker.store.load(_id(request))
    body = read_json(await request.read())
    ttl_s = body.get("ttl_s") if isinstance(body, dict) else None
    if type(ttl_s) is not int or not 10 <= ttl_s <= 604_800:
        raise ConfigError("ttl_s is not a number from 10 to 604800", path="ttl_s", fix='for example {"ttl_s": 3600}')
    record = await worker.store.extend(record, ttl_s)
    return web.json_response({"session_id": record.id, "expires_in_s": ttl_s})


async def another_token(request: web.Request) -> web.Response:
    """A fresh token: the first one is short-lived."""
    worker = request.app[WORKER]
    record = await worker.store.load(_id(request))
    return web.json_response({"session_id": record.id, "token": _sign(request, record.id)}, status=201)


async def history(request: web.Request) -> web.Response:
    """What was said, turn by turn, as far as the caller heard it."""
    worker = request.app[WORKER]
    session = _id(request)
    await worker.store.load(session)
    turns = [msgspec.json.decode(data) for data in await worker.store.history(session)]
    return web.json_response({"session_id": session, "turns": turns})


async def end(request: web.Request) -> web.Response:
    """End a session. Ending it again is no error."""
    await _end(request.app[WORKER], _id(request), "ended")
    return web.Response(status=204)


async def stream(request: web.Request) -> web.StreamResponse:
    """Join over a WebSocket: `?token=…&rate=16000&out_rate=24000`."""
    session = _id(request)
    tokens.verify(request.query.get("token", ""), session, request.app[SECRET])
    in_hz, out_hz = _rate(request, "rate", 16_000), _rate(request, "out_rate", 24_000)
    switchboard = request.app[SWITCHBOARD]
    worker = switchboard.worker
    record = await worker.store.load(session)
    if worker.draining or (worker.full and session not in worker.owned):
        raise OverloadError("this transport worker takes no more calls")
    caller = await websocket.accept(request, in_hz, out_hz)
    call = None
    try:
        call = await switchboard.connect(session, caller)
        caller.greet(
            {
                "type": "ready",
                "session": session,
                "rate": in_hz,
                "out_rate": out_hz,
                "flow": [edge.model_dump(by_alias=True) for edge in record.request.config.pipeline.flow],
                "owners": {stage: lease.worker for stage, lease in call.owners.items()},
                "t_ms": clock.wall_ns() // clock.MS,
            }
        )
        await caller.run(call)
    except MeshError as error:
        await caller.refuse(error)
    except Exception as error:  # the request is answered: no problem+json can follow
        log.error("call_failed", session=session, error=type(error).__name__, exc_info=error)
        await caller.refuse(MeshError("something went wrong on our side"))
    finally:
        if call is not None:
            await switchboard.disconnect(call)
        await caller.aclose()
    return caller.socket


# -- parts ------------------------------------------------------------------------------------------------------------


def _id(request: web.Request) -> SessionId:
    session = parse_session_id(request.match_info["id"])
    if session is None:
        raise SessionError("there is no such session: an id has 26 characters, a-z and 2-7")
    return session


def _rate(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if text not in map(str, RATES_HZ):
        listed = ", ".join(map(str, RATES_HZ))
        raise ConfigError(f"{name} is not a sample rate that is taken", path=name, fix=f"one of {listed}")
    return int(text)


def _sign(request: web.Request, session: SessionId) -> str:
    return tokens.sign(session, request.app[SECRET], request.app[WORKER].settings.token_ttl_s)


def _base_url(request: web.Request) -> str:
    public = request.app[WORKER].settings.public_url.rstrip("/")
    return re.sub("^http", "ws", public) or f"ws://{request.host}"


def _state(worker: Worker, stage: Stage, name: str) -> ProviderState:
    return provider_state(worker.registry, stage, name)


def _check(worker: Worker, asked: SessionRequest) -> None:
    problems = provider_problems(worker.registry, asked)
    if errors := [problem for problem in problems if not problem.warning]:
        raise ConfigProblems(errors)


def _summary(record: SessionRecord) -> dict[str, Any]:
    return {
        "session_id": record.id,
        "session_name": record.request.session_name,
        "status": record.status,
        "created_at_s": record.created_at_s,
        "pipeline": record.request.config.pipeline.name,
    }


async def _announce(worker: Worker, session: SessionId, frame: Frame) -> None:
    stamped = msgspec.structs.replace(frame, at_ns=clock.wall_ns())
    message_id = f"api/{session}/{secrets.token_hex(8)}"
    await worker.acknowledged.publish(subjects.control(session), encode(stamped), message_id)


async def _end(worker: Worker, session: SessionId, reason: str) -> None:
    await worker.store.delete(session)
    await _announce(worker, session, SessionEnded(reason=reason))
    task = asyncio.get_running_loop().create_task(_purge(worker, session))
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _purge(worker: Worker, session: SessionId) -> None:
    await asyncio.sleep(LATE_FRAMES_S)
    heard = [subjects.audio_input(session), subjects.text_input(session), subjects.control(session)]
    heard += [subjects.output(stage, session) for stage in STAGES if stage != "transport"]
    for subject in heard:
        try:
            await worker.bus.purge(subject)
        except BusError as error:
            log.warning("journal_not_purged", session=session, error=str(error))
            return
