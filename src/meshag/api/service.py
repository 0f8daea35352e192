"""What every service answers over HTTP: `/health`, `/ready`, `/metrics`."""

import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from meshag import __version__, clock, subjects
from meshag.api import access
from meshag.api.problems import Handler, as_problems, problem
from meshag.connectors.states import provider_state
from meshag.errors import MeshError, SessionError
from meshag.frames import Frame, encode
from meshag.ids import SessionId, parse_session_id
from meshag.stages.worker import Worker
from meshag.subjects import STAGES, Stage

WORKER = web.AppKey("worker", Worker)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def service(worker: Worker, routes: Iterable[web.AbstractRouteDef] = ()) -> web.Application:
    """The application of one service, with `routes` beside the common ones."""
    app = web.Application(middlewares=[as_problems, own_pages_only(worker)], client_max_size=64 * 1024)
    app[WORKER] = worker
    app.add_routes([web.get("/health", health), web.get("/ready", ready), web.get("/metrics", metrics)])
    app.add_routes(routes)
    return app


def own_pages_only(worker: Worker) -> Middleware:
    """Refuses browsers that show another site's page: that page could otherwise talk to a service on this machine."""
    settings = worker.settings
    public = _address(settings.public_url)
    own = {settings.host, _name(public) or settings.host} | LOOPBACK

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if settings.host in LOOPBACK and _name(request.host) not in own:
            return problem(403, "host_refused", "this service answers to its own name only; see MESHAG_PUBLIC_URL")
        for origin in request.headers.getall("Origin", []):  # "null", of a sandboxed frame or a file, is foreign too
            address = _address(origin)
            if not address or address not in (request.host.lower(), public):
                return problem(403, "origin_refused", "pages of other sites may not use this service")
        return await handler(request)

    return check


def _address(url: str) -> str:
    """Host and port in a URL, in lower case; empty where there are none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _name(address: str) -> str:
    """The host in `host:port`; empty where there is none."""
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""


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
