"""The fleet over HTTP, on the transport service.

GET  /workers                   every worker alive: stage, sessions, capacity
POST /workers/{worker}/drain    have one hand its sessions over and end
"""

from aiohttp import web

from meshag import subjects
from meshag.api import access
from meshag.api.service import WORKER
from meshag.errors import OverloadError, SessionError
from meshag.ids import parse_worker_id
from meshag.sessions.fleet import Presence
from meshag.subjects import STAGES

ASKED_MS = 2_000
"""A worker answers at once that it will."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/workers", listing), web.post("/workers/{worker}/drain", drain)]


@access.read
async def listing(request: web.Request) -> web.Response:
    """Every worker that is alive."""
    there = request.app[WORKER].fleet.workers()
    there.sort(key=lambda one: (one.stage, one.worker))
    return web.json_response({"workers": [_told(one) for one in there]})


@access.admin
async def drain(request: web.Request) -> web.Response:
    """Have a worker take no more, hand its sessions over, each at its next quiet moment, and end. Answers at once."""
    mine = request.app[WORKER]
    wanted = parse_worker_id(request.match_info["worker"])
    found = next((one for one in mine.fleet.workers() if one.worker == wanted), None)
    stage = next((stage for stage in STAGES if found is not None and found.stage == stage), None)
    if found is None or stage is None:
        raise SessionError("there is no such worker, or it has left: see GET /workers", code="worker_not_found")
    try:
        await mine.bus.request(subjects.drain(stage, found.worker), b"", timeout_ms=ASKED_MS)
    except OverloadError:  # nobody listens: it has just ended
        raise SessionError("that worker has just left", code="worker_not_found") from None
    return web.json_response({**_told(found), "draining": True}, status=202)


def _told(one: Presence) -> dict[str, object]:
    return {
        "worker": one.worker,
        "stage": one.stage,
        "sessions": one.owned,
        "capacity": one.capacity,
        "draining": one.draining,
    }
