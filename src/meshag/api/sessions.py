"""Sessions over HTTP, on the transport service.

POST   /sessions/with-config     make one
GET    /sessions                 page by page, the newest first
GET    /sessions/{id}            one: status, configuration, owners, latencies, what it has cost
PATCH  /sessions/{id}/config     change its configuration from the next turn on
POST   /sessions/{id}/extend     let it live longer
POST   /sessions/{id}/token      another token for its caller
DELETE /sessions/{id}            end it
"""

import asyncio
import random
import re
from typing import Any

from aiohttp import web

from meshag.api import access, lifecycle
from meshag.api.access import key_of, limited_to
from meshag.api.idempotency import once
from meshag.api.lifecycle import Wish, begin, check
from meshag.api.service import WORKER, announce, session_id
from meshag.api.tokens import another, renewed
from meshag.errors import ConfigError, SessionError, StoreError
from meshag.frames import ConfigChanged
from meshag.ids import SessionId
from meshag.sessions.config import parse_request, patched, stages_of
from meshag.sessions.pages import cursor_of, place_of
from meshag.sessions.requests import ExtendRequest, parse
from meshag.sessions.store import SessionRecord
from meshag.sessions.strict_json import read_json
from meshag.stages.worker import Worker

_changing = asyncio.Lock()
"""One change of a configuration at a time: each is made of what the one before it has stored."""

CHANGE_TRIES = 20
"""A change is made so often, each time of what another worker has stored meanwhile; then its sender is told."""

CHANGE_WAIT_S = 0.02
"""Before it is made again, at most."""

STATUSES = ("created", "live", "idle")
"""What a session's status may be."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [
        web.post("/sessions/with-config", create),
        web.get("/sessions", listing),
        web.get("/sessions/{id}", show),
        web.patch("/sessions/{id}/config", change),
        web.post("/sessions/{id}/extend", extend),
        web.post("/sessions/{id}/token", another_token),
        web.delete("/sessions/{id}", end),
    ]


@access.write
async def create(request: web.Request) -> web.Response:
    """Check the configuration, store it, find an owner for each stage, say how to join."""
    body = await request.read()

    async def make() -> dict[str, Any]:
        asked = await asyncio.to_thread(parse_request, body)  # tools' schemas take their time
        begun = await begin(request, asked, Wish(key_of(request)))
        return {
            "session_id": begun.record.id,
            "room_url": begun.invitation.room_url,
            "token": begun.invitation.token,
            "config_stored": True,
        }

    async def again(made: dict[str, Any]) -> dict[str, Any]:
        return made | {"token": await renewed(request, SessionId(made["session_id"]), made["token"])}

    return await once(request, make, again)


@access.read
async def listing(request: web.Request) -> web.Response:
    """Sessions, the newest first. `?limit=`: 1 to 1,000, default 100; `?status=`; `?cursor=`: the next page."""
    worker = request.app[WORKER]
    status, cursor = request.query.get("status", ""), request.query.get("cursor", "")
    if status and status not in STATUSES:
        raise ConfigError("there is no such status", path="status", fix=f"one of {', '.join(STATUSES)}")
    asked = request.query.get("limit", "100")
    limit = int(asked) if re.fullmatch("[0-9]{1,4}", asked) else 0
    after = place_of(cursor) if cursor else None
    if not 1 <= limit <= 1000:
        raise ConfigError("limit is not a number from 1 to 1000", path="limit", fix="for example ?limit=100")
    found = []
    page = await worker.store.page(limit=limit, key=limited_to(request), status=status, after=after)
    for session in page.ids:
        try:
            found.append(_summary(await worker.store.load(session)))
        except SessionError:
            continue  # ended meanwhile
    return web.json_response({"sessions": found, "next_cursor": cursor_of(page.next) if page.next else None})


@access.read
async def show(request: web.Request) -> web.Response:
    """One session."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    owners: dict[str, object] = {}
    for stage in (*stages_of(record.request.config), "transport"):
        lease = await worker.store.lease(record.id, stage)
        if lease is not None:
            alive = worker.fleet.is_alive(lease.worker)
            owners[stage] = {"worker": lease.worker, "epoch": lease.epoch, "alive": alive}
    counted = await worker.store.usage.read(record.id)
    body = _summary(record) | {
        **counted,
        "turns": max(counted["turns"], await worker.store.turns(record.id)),
        "version": record.version,
        "expires_in_s": await worker.store.remaining_s(record.id),
        "owners": owners,
        **record.request.model_dump(by_alias=True, mode="json"),
    }
    return web.json_response(body)


@access.write
async def change(request: web.Request) -> web.Response:
    """Change what was asked for by a JSON merge patch of the same document. It holds from the next turn on."""
    worker = request.app[WORKER]
    session, patch = session_id(request), read_json(await request.read())
    async with _changing:
        before, record = await _patch(worker, session, patch)
        if record.version != before.version:
            if record.request.ttl_s != before.request.ttl_s:
                record = await worker.store.extend(record, record.request.ttl_s or worker.settings.session_ttl_s)
            await announce(worker, record.id, ConfigChanged(version=record.version))
            await worker.events.tell("session_updated", record.id, record.key, version=record.version)
    return web.json_response(
        {
            "session_id": record.id,
            "version": record.version,
            "config": record.request.config.model_dump(by_alias=True, mode="json"),
        }
    )


@access.write
async def extend(request: web.Request) -> web.Response:
    """Let the session live `ttl_s` seconds after its last sign of life, beginning now."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    ttl_s = parse(ExtendRequest, await request.read()).ttl_s
    record = await worker.store.extend(record, ttl_s)
    return web.json_response({"session_id": record.id, "expires_in_s": ttl_s})


@access.write
async def another_token(request: web.Request) -> web.Response:
    """A fresh token: the first one is short-lived."""
    worker = request.app[WORKER]
    record = await worker.store.load(session_id(request))
    return web.json_response({"session_id": record.id, "token": await another(request, record)}, status=201)


@access.write
async def end(request: web.Request) -> web.Response:
    """End a session. Ending it again is no error."""
    await lifecycle.end(request.app[WORKER], session_id(request), "ended")
    return web.Response(status=204)


# -- parts ------------------------------------------------------------------------------------------------------------


async def _patch(worker: Worker, session: SessionId, patch: Any) -> tuple[SessionRecord, SessionRecord]:
    """The session as it was and as it is now: patched anew when another transport worker's change came between.

    Raises StoreError (`session_changed`) when one came between every time.
    """
    tries = 0
    while True:
        record = await worker.store.load(session)
        asked = await asyncio.to_thread(patched, record.request, patch)
        check(worker, asked)
        if asked == record.request:
            return record, record
        tries += 1
        try:
            return record, await worker.store.change_config(record, asked)
        except StoreError as error:
            if error.code != "session_changed" or tries == CHANGE_TRIES:
                raise
        await asyncio.sleep(random.uniform(0, CHANGE_WAIT_S))


def _summary(record: SessionRecord) -> dict[str, Any]:
    return {
        "session_id": record.id,
        "session_name": record.request.session_name,
        "status": record.status,
        "created_at_s": record.created_at_s,
        "pipeline": record.request.config.pipeline.name,
    }
