"""A session's caller, over a WebSocket: `GET /sessions/{id}/stream?token=…`."""

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
from meshag.stages.transport import Switchboard

log = structlog.get_logger("meshag.api")

SWITCHBOARD = web.AppKey("switchboard", Switchboard)
SECRET = web.AppKey("secret", str)


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/sessions/{id}/stream", stream)]


@access.caller
async def stream(request: web.Request) -> web.StreamResponse:
    """Join over a WebSocket: `?token=…&rate=16000&out_rate=24000`."""
    session = session_id(request)
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


def sign(request: web.Request, session: SessionId) -> str:
    """A token with which the session's caller may join."""
    return tokens.sign(session, request.app[SECRET], request.app[WORKER].settings.token_ttl_s)


def _rate(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if text not in map(str, RATES_HZ):
        listed = ", ".join(map(str, RATES_HZ))
        raise ConfigError(f"{name} is not a sample rate that is taken", path=name, fix=f"one of {listed}")
    return int(text)
