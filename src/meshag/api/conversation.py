"""What is said in a session, over HTTP.

GET    /sessions/{id}/history    what was said, turn by turn
"""

import msgspec
from aiohttp import web

from meshag.api import access
from meshag.api.service import WORKER, session_id


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/sessions/{id}/history", history)]


@access.read
async def history(request: web.Request) -> web.Response:
    """What was said, turn by turn, as far as the caller heard it."""
    worker = request.app[WORKER]
    session = session_id(request)
    await worker.store.load(session)
    turns = [msgspec.json.decode(data) for data in await worker.store.history(session)]
    return web.json_response({"session_id": session, "turns": turns})
