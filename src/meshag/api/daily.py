"""Daily's webhooks, on the transport service.

POST /webhooks/daily    what happened in a room, as Daily tells it
"""

import structlog
from aiohttp import web

from meshag import clock
from meshag.api import access
from meshag.api.service import WORKER
from meshag.connectors import daily_webhooks
from meshag.connectors.contracts import Rooms
from meshag.connectors.daily_webhooks import Told
from meshag.errors import AuthError, ConfigError, ConnectorError
from meshag.ids import SessionId
from meshag.stages.worker import Worker

log = structlog.get_logger("meshag.daily")


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.post("/webhooks/daily", webhook)]


@access.everybody
async def webhook(request: web.Request) -> web.Response:
    """Take an event of Daily's. Needs no API key: its signature, made with DAILY_WEBHOOK_SECRET, is its key.

    Daily gives up an address that does not answer 200 at once, so what cannot be used is taken all the same: events
    heard before, of unknown types, of rooms that are none of ours, and the trial when the webhook is made.
    """
    worker = request.app[WORKER]
    body = await request.read()
    secret = worker.settings.daily_webhook_secret.get_secret_value()
    if daily_webhooks.is_trial(body):  # its secret is told in the answer to the request that it comes before
        return web.json_response({"taken": False})
    if not secret:
        raise AuthError("set DAILY_WEBHOOK_SECRET to the webhook's hmac", code="webhook_secret")
    daily_webhooks.verify(secret, request.headers, body, clock.wall_s())
    told = daily_webhooks.read(body)
    return web.json_response({"taken": told is not None and await _take(worker, told)})


async def _take(worker: Worker, told: Told) -> bool:
    """Tell of an event, once. False when it is none of ours, or was heard before."""
    places = worker.store.places
    if not await places.first(f"daily:{told.id}"):
        return False
    try:
        found = await _whose(worker, told)
    except BaseException:
        await places.untell(f"daily:{told.id}")  # Daily will tell it again
        raise
    if found is None:
        return False
    session, key = found
    await worker.events.tell(told.kind, session, key, once=told.once or f"daily/{told.id}", **told.data)
    return True


async def _whose(worker: Worker, told: Told) -> tuple[SessionId, str] | None:
    """The session that an event is of. What tells no room is of a recording, which has one."""
    room = told.room
    if not room and told.recording:
        try:
            connector = worker.registry.get("transport", "daily")
            assert isinstance(connector, Rooms)
            room = await connector.room_of(told.recording)
        except (ConfigError, ConnectorError) as error:
            log.warning("recording_not_found", error=str(error))
            return None
    return await worker.store.places.whose(f"daily:{room}") if room else None
