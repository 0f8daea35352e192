"""Tokens for a session's caller, after the one that its creation returned."""

from dataclasses import replace

import structlog
from aiohttp import web

from meshag.api.lifecycle import base_url, transport_of
from meshag.api.service import WORKER
from meshag.api.stream import sign
from meshag.errors import MeshError
from meshag.ids import SessionId
from meshag.sessions.store import SessionRecord
from meshag.stages.attending import booking_of, connector_of

log = structlog.get_logger("meshag.api")


async def another(request: web.Request, record: SessionRecord) -> str:
    """A fresh token. Raises ConnectorError when the place where the caller joins does not give one."""
    worker = request.app[WORKER]
    met = record.room.get("transport")
    connector = connector_of(worker, record.room) if met else transport_of(worker, record.request)
    booking = replace(booking_of(record, connector), base_url=base_url(request), token=sign(request, record.id))
    return await connector.admit(booking, record.room)


async def renewed(request: web.Request, session: SessionId, old: str) -> str:
    """A fresh token in place of an old one; the old one again when there is none to be had, or no session any more."""
    try:
        return await another(request, await request.app[WORKER].store.load(session))
    except MeshError as error:
        log.warning("token_not_renewed", session=session, code=error.code)
        return old
