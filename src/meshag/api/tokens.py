"""Tokens for a session's caller, after the one that its creation returned."""

import structlog
from aiohttp import web

from meshag.api.lifecycle import base_url, transport_of
from meshag.api.service import WORKER
from meshag.api.stream import sign
from meshag.connectors.contracts import Booking, TransportConnector
from meshag.errors import MeshError
from meshag.ids import SessionId
from meshag.sessions.store import SessionRecord

log = structlog.get_logger("meshag.api")


async def another(request: web.Request, record: SessionRecord) -> str:
    """A fresh token. Raises ConnectorError when the place where the caller joins does not give one."""
    worker = request.app[WORKER]
    name = record.room.get("transport")
    connector = worker.registry.get("transport", name) if name else transport_of(worker, record.request)
    assert isinstance(connector, TransportConnector)
    chosen = record.request.config.connectors.transport
    booking = Booking(
        session=record.id,
        base_url=base_url(request),
        token=sign(request, record.id),
        options=connector.options.model_validate(chosen.config.get(connector.name, {})),
        name=record.request.session_name,
        max_participants=record.request.max_participants,
        recording=record.request.enable_recording,
        transcription=record.request.enable_transcription,
        ttl_s=record.ttl_s,
    )
    return await connector.admit(booking, record.room)


async def renewed(request: web.Request, session: SessionId, old: str) -> str:
    """A fresh token in place of an old one; the old one again when there is none to be had, or no session any more."""
    try:
        return await another(request, await request.app[WORKER].store.load(session))
    except MeshError as error:
        log.warning("token_not_renewed", session=session, code=error.code)
        return old
