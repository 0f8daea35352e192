"""What every service answers over HTTP: `/health`, `/ready`, `/metrics`."""

import re
import secrets
from collections.abc import Iterable

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from meshag import __version__, clock, subjects
from meshag.api import access
from meshag.api.origins import known_pages_only, telling_pages
from meshag.api.problems import Handler, as_problems
from meshag.connectors.states import provider_state
from meshag.errors import MeshError, SessionError
from meshag.frames import Frame, encode
from meshag.ids import SessionId, parse_session_id
from meshag.stages.worker import Worker
from meshag.subjects import STAGES, Stage

WORKER = web.AppKey("worker", Worker)

REQUEST_ID = web.RequestKey("request_id", str)
"""Where a request keeps its id."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def service(worker: Worker, routes: Iterable[web.AbstractRouteDef] = ()) -> web.Application:
    """The application of one service, with `routes` beside the common ones."""
    app = web.Application(
        middlewares=[with_id, as_problems, known_pages_only(worker.settings), access.guard(worker)],
        client_max_size=64 * 1024,
    )
    app.on_response_prepare.append(_answer_id)
    app.on_response_prepare.append(telling_pages(worker.settings))
    app[WORKER] = worker
    app.add_routes([web.get("/health", health), web.get("/ready", ready), web.get("/metrics", metrics)])
    app.add_routes(routes)
    return app


@web.middleware
async def with_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, its own where it brings a good one; every log line of the request says it."""
    sent = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
    with structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]):
        return await handler(request)


async def _answer_id(request: web.Request, response: web.StreamResponse) -> None:
    if REQUEST_ID in request:
        response.headers["X-Request-ID"] = request[REQUEST_ID]


@access.everybody
async def health(request: web.Request) -> web.Response:
    """200 while the process is alive."""
    worker = request.app[WORKER]
    return web.json_response(
        {"status": "alive", "stage": worker.stage, "worker": worker.worker_id, "version": __version__}
    )


@access.everybody
async def ready(request: web.Request) -> web.Response:
    """200 when this service takes work, 503 otherwise; with the state of each server and each provider."""
    worker = request.app[WORKER]
    nats, valkey = await _nats(worker), await _valkey(worker)
    able = worker.ready and nats["ok"] and valkey["ok"] and not worker.full
    body = {
        "ready": bool(able),
        "stage": worker.stage,
        "worker": worker.worker_id,
        "sessions": {"owned": len(worker.owned), "capacity": worker.settings.capacity},
        "draining": worker.draining,
        "nats": nats,
        "valkey": valkey,
        "providers": providers(worker, worker.stage),
        "workers": {stage: len(worker.fleet.workers(stage)) for stage in STAGES},
    }
    return web.json_response(body, status=200 if able else 503)


@access.everybody
async def metrics(request: web.Request) -> web.Response:
    """What Prometheus reads."""
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _nats(worker: Worker) -> dict[str, object]:
    state: dict[str, object] = {"server": worker.bus.address}
    if not worker.bus.connected:
        return state | {"ok": False, "error": "not connected"}
    try:
        state["round_trip_ms"] = round(await worker.bus.round_trip_ms(), 3)
    except MeshError as error:
        return state | {"ok": False, "error": str(error)}
    refusal = worker.bus.refusal
    return state | ({"ok": False, "error": f"JetStream refuses messages: {refusal}"} if refusal else {"ok": True})


async def _valkey(worker: Worker) -> dict[str, object]:
    state: dict[str, object] = {"server": worker.store.address}
    try:
        return state | {"ok": True, "round_trip_ms": round(await worker.store.round_trip_ms(), 3)}
    except MeshError as error:
        return state | {"ok": False, "error": str(error)}


def providers(worker: Worker, stage: Stage) -> dict[str, dict[str, object]]:
    """The providers of a stage, by name: installed, usable, in use or not."""
    found: dict[str, dict[str, object]] = {}
    for name in worker.registry.names(stage):
        state = provider_state(worker.registry, stage, name)
        found[name] = {"available": state.available, "detail": state.detail, **worker.breakers.told(stage, name)}
    return found


def session_id(request: web.Request) -> SessionId:
    """The session that a path names. Raises SessionError for what is no id."""
    session = parse_session_id(request.match_info["id"])
    if session is None:
        raise SessionError("there is no such session: an id has 26 characters, a-z and 2-7")
    return session


async def announce(worker: Worker, session: SessionId, frame: Frame) -> None:
    """Tell every owner of the session."""
    stamped = msgspec.structs.replace(frame, at_ns=clock.wall_ns())
    message_id = f"api/{session}/{secrets.token_hex(8)}"
    await worker.acknowledged.publish(subjects.control(session), encode(stamped), message_id)
