"""A session's caller, over a WebSocket: `GET /sessions/{id}/stream?token=…`, or `?resume=…` after it broke."""

import asyncio
import re

import structlog
from aiohttp import web

from meshag import clock
from meshag.api import access
from meshag.api.service import WORKER, session_id
from meshag.audio import RATES_HZ
from meshag.connectors.transports import websocket
from meshag.errors import ConfigError, MeshError, OverloadError
from meshag.ids import SessionId
from meshag.sessions import tokens
from meshag.stages.resuming import Left, parse_place
from meshag.stages.transport import Switchboard

log = structlog.get_logger("meshag.api")

SWITCHBOARD = web.AppKey("switchboard", Switchboard)
SECRET = web.AppKey("secret", str)

LOOK_S = 1.0
"""How often a connection looks whether its caller has to be told of another way back."""

_COUNT = re.compile("[0-9]{1,9}")


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/sessions/{id}/stream", stream)]


@access.caller
async def stream(request: web.Request) -> web.StreamResponse:
    """Join over a WebSocket: `?token=…&rate=16000&out_rate=24000`; or come back: `?resume=…&at=…&turn=1&heard_ms=4`."""
    session = session_id(request)
    left = None
    if "resume" in request.query:
        tokens.verify(request.query["resume"], session, request.app[SECRET], "resume")
        left = _left(request)
    else:
        tokens.verify(request.query.get("token", ""), session, request.app[SECRET])
    in_hz, out_hz = _rate(request, "rate", 16_000), _rate(request, "out_rate", 24_000)
    switchboard = request.app[SWITCHBOARD]
    worker = switchboard.worker
    record = await worker.store.load(session)
    if worker.draining or (worker.full and session not in worker.owned):
        raise OverloadError("this transport worker takes no more calls")
    caller = await websocket.accept(request, in_hz, out_hz)
    call = keeping = None
    try:
        call = await switchboard.connect(session, caller, left)
        way_back = _way_back(request, session, record.ttl_s)
        caller.greet(
            {
                "type": "ready",
                "session": session,
                "rate": in_hz,
                "out_rate": out_hz,
                "flow": [edge.model_dump(by_alias=True) for edge in record.request.config.pipeline.flow],
                "owners": {stage: lease.worker for stage, lease in call.owners.items()},
                "at": call.began_at,
                "resume": way_back[0],
                "addresses": way_back[1],
                "t_ms": clock.wall_ns() // clock.MS,
            }
        )
        keeping = asyncio.create_task(_keep_way_back(request, caller, session, record.ttl_s, way_back[1]))
        await caller.run(call)
    except MeshError as error:
        await caller.refuse(error)
    except Exception as error:  # the request is answered: no problem+json can follow
        log.error("call_failed", session=session, error=type(error).__name__, exc_info=error)
        await caller.refuse(MeshError("something went wrong on our side"))
    finally:
        if keeping is not None:
            keeping.cancel()
        if call is not None:
            await switchboard.disconnect(call)
        await caller.aclose()
    return caller.socket


def _way_back(request: web.Request, session: SessionId, ttl_s: int) -> tuple[str, list[str]]:
    """A token to come back with, and where to, should this connection break."""
    worker = request.app[WORKER]
    others = worker.fleet.addresses(session, worker.worker_id)
    token = tokens.sign(session, request.app[SECRET], ttl_s, "resume")
    return token, [f"{address}/sessions/{session}/stream" for address in others]


async def _keep_way_back(
    request: web.Request, caller: websocket.WebSocketCaller, session: SessionId, ttl_s: int, addresses: list[str]
) -> None:
    """Tell the caller anew before the token expires, and when other transport workers come or go."""
    until_s = clock.monotonic_s() + ttl_s / 2
    while True:
        await asyncio.sleep(LOOK_S)
        token, found = _way_back(request, session, ttl_s)
        if found != addresses or clock.monotonic_s() > until_s:
            addresses, until_s = found, clock.monotonic_s() + ttl_s / 2
            now_ms = clock.wall_ns() // clock.MS
            caller.send_event({"type": "resume", "resume": token, "addresses": found, "t_ms": now_ms})


def sign(request: web.Request, session: SessionId) -> str:
    """A token with which the session's caller may join."""
    return tokens.sign(session, request.app[SECRET], request.app[WORKER].settings.token_ttl_s)


def _left(request: web.Request) -> Left:
    """Where the caller's former connection had come to, as it says. Raises ConfigError."""
    at = request.query.get("at", "")
    if at and parse_place(at) is None:
        raise ConfigError("at is none that a message had", path="at", fix="send the last one as it is")
    turn = _count(request, "turn") if "turn" in request.query else None
    return Left(at, turn, _count(request, "heard_ms") if turn else 0)


def _count(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not _COUNT.fullmatch(text):
        raise ConfigError(f"{name} is not a whole number", path=name, fix="send digits, nine at most")
    return int(text)


def _rate(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if text not in map(str, RATES_HZ):
        listed = ", ".join(map(str, RATES_HZ))
        raise ConfigError(f"{name} is not a sample rate that is taken", path=name, fix=f"one of {listed}")
    return int(text)
