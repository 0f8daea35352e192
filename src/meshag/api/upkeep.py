"""What one transport worker does for all: sessions that have expired are ended for good, orphaned rooms taken down."""

import asyncio

import structlog

from meshag import clock
from meshag.api.lifecycle import bury
from meshag.connectors.contracts import TransportConnector
from meshag.errors import MeshError
from meshag.ids import parse_session_id
from meshag.stages.worker import Worker

log = structlog.get_logger("meshag.upkeep")

LOOK_S = 2.0
"""Between two looks at the sessions that have expired."""

SWEEP_S = 180.0
"""Between two sweeps of a transport's orphaned rooms."""


async def keep_up(worker: Worker) -> None:
    """Until it is cancelled. For one worker of all, though two at a time do no harm."""
    swept_s = clock.monotonic_s()
    while True:
        try:
            await end_expired(worker)
        except MeshError as error:
            log.warning("expired_not_ended", error=str(error))
        if clock.monotonic_s() - swept_s >= SWEEP_S:
            await sweep_rooms(worker)
            swept_s = clock.monotonic_s()
        await asyncio.sleep(LOOK_S)


async def end_expired(worker: Worker) -> None:
    """Tell of every session that has expired, once, and take down what is left of it. Raises StoreError."""
    while expired := await worker.store.expiry.expired():
        for session, remains in expired:
            log.info("session_expired", session=session)
            await bury(worker, session, remains)


async def sweep_rooms(worker: Worker) -> None:
    """Have every transport that can work here look for rooms whose sessions are gone."""

    async def known(text: str) -> bool:
        session = parse_session_id(text)
        return session is not None and await worker.store.remaining_s(session) is not None

    for name in worker.registry.names("transport"):
        try:
            connector = worker.registry.get("transport", name)
            if isinstance(connector, TransportConnector) and connector.availability().available:
                await connector.sweep(await worker.store.places.mark(), known)
        except MeshError as error:
            log.warning("rooms_not_swept", provider=name, error=str(error))
