"""A session's beginning and end, the same whoever asks for it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from aiohttp import web

from meshag import subjects
from meshag.api.access import quota_of
from meshag.api.service import WORKER, announce
from meshag.api.stream import sign
from meshag.connectors.contracts import Invitation, TransportConnector
from meshag.connectors.states import provider_state, session_problems
from meshag.errors import BusError, MeshError, SessionError
from meshag.frames import SessionEnded
from meshag.ids import SessionId, new_session_id
from meshag.sessions.config import SessionRequest, effective
from meshag.sessions.expiry import Remains
from meshag.sessions.problems import ConfigProblems
from meshag.sessions.store import SessionRecord
from meshag.stages.attending import Attendance, booking_of, connector_of
from meshag.stages.transport import ensure_owners
from meshag.stages.worker import Worker
from meshag.subjects import STAGES

log = structlog.get_logger("meshag.api")

LATE_FRAMES_S = 2.0
"""After a session's end its owners may still say a word; then its journal is purged."""

DISMISS_S = 30.0
"""A room that is not taken down by then is left to the sweep of orphaned rooms."""

ATTENDANCE = web.AppKey("attendance", Attendance)

_background: set[asyncio.Task[None]] = set()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller of the API wants beside the configuration."""

    key: str = ""
    """The id of the API key that asks; empty where none is needed."""

    room: Mapping[str, Any] = field(default_factory=dict)
    """Of the room, see `Booking.room`."""

    participant: Mapping[str, Any] = field(default_factory=dict)
    """Of the caller, see `Booking.participant`."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A session that its caller may join."""

    record: SessionRecord
    invitation: Invitation
    transport: str
    """The connector that invites."""


def check(worker: Worker, asked: SessionRequest) -> None:
    """Raises ConfigProblems when no installed provider can do what is asked for, or a tool could not be called."""
    problems = session_problems(worker.registry, worker.hosts, asked)
    if errors := [problem for problem in problems if not problem.warning]:
        raise ConfigProblems(errors)


def transport_of(worker: Worker, asked: SessionRequest) -> TransportConnector:
    """The transport that serves a session: the first of its own that can work here."""
    usable = effective(
        asked.config, "transport", lambda name: provider_state(worker.registry, "transport", name).available
    )
    connector = worker.registry.get("transport", usable[0])
    assert isinstance(connector, TransportConnector)
    return connector


async def begin(request: web.Request, asked: SessionRequest, wish: Wish) -> Begun:
    """Store a session, find an owner for each stage, make the place where it is joined. All of that, or nothing."""
    worker = request.app[WORKER]
    check(worker, asked)
    session = new_session_id()
    ttl_s = asked.ttl_s or worker.settings.session_ttl_s
    record = await worker.store.create(session, asked, ttl_s, wish.key, quota_of(request))
    try:
        await ensure_owners(worker, record)
        connector = transport_of(worker, asked)
        invitation = await connector.invite(
            replace(
                booking_of(record, connector),
                base_url=base_url(request),
                token=sign(request, session),
                room=wish.room,
                participant=wish.participant,
                fleet=await worker.store.places.mark(),
            )
        )
        if invitation.room:
            record = await _settle(worker, record, connector, invitation)
    except BaseException:
        await end(worker, session, "failed")
        raise
    log.info("session_created", session=session, pipeline=asked.config.pipeline.name)
    await worker.events.tell("session_created", session, wish.key, name=asked.session_name, transport=connector.name)
    if connector.attends:
        request.app[ATTENDANCE].attend(session)
    return Begun(record, invitation, connector.name)


async def end(worker: Worker, session: SessionId, reason: str) -> bool:
    """Forget a session, tell its owners, take down its room, later its journal. False when it had gone already."""
    try:
        record = await worker.store.load(session)
    except SessionError:
        record = None
    there = await worker.store.delete(session)
    await announce(worker, session, SessionEnded(reason=reason))
    if record is not None and there:
        if reason != "failed":  # it never began: nobody was told of it
            await worker.events.tell("session_ended", session, record.key, once="ended", reason=reason)
        if record.room:
            _later(_dismiss(worker, session, record.room))
    _later(_purge(worker, session))
    return there


async def bury(worker: Worker, session: SessionId, remains: Remains) -> None:
    """What `end` does, for a session that has expired by itself. May raise StoreError: bury it again then."""
    await worker.events.tell("session_ended", session, remains.key, once="ended", reason="expired")
    await announce(worker, session, SessionEnded(reason="expired"))
    if remains.room:
        await _dismiss(worker, session, remains.room)
    await worker.store.expiry.bury(session)
    _later(_purge(worker, session))


def base_url(request: web.Request) -> str:
    """The transport service as callers see it, `ws://` or `wss://`."""
    return request.app[WORKER].settings.public_socket_url or f"ws://{request.host}"


def _later(work: "asyncio._CoroutineLike[None]") -> None:
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _settle(
    worker: Worker, record: SessionRecord, connector: TransportConnector, invitation: Invitation
) -> SessionRecord:
    """Note the place that was made, so that the session, its vendor's words and whoever tidies up find it again."""
    room = {**invitation.room, "transport": connector.name}
    try:
        record = await worker.store.set_room(record, room)
        for part in ("name", "id"):
            if part in room:
                await worker.store.places.remember(f"{connector.name}:{room[part]}", record.id, record.key)
        if connector.attends:
            await worker.store.places.attend(record.id)
    except BaseException:
        _later(_dismiss(worker, record.id, room))
        raise
    return record


async def _dismiss(worker: Worker, session: SessionId, room: Mapping[str, Any]) -> None:
    try:
        async with asyncio.timeout(DISMISS_S):
            await connector_of(worker, room).dismiss(session, room)
    except (MeshError, TimeoutError) as error:  # the sweep of orphaned rooms finds it
        log.warning("room_not_taken_down", session=session, error=str(error))


async def _purge(worker: Worker, session: SessionId) -> None:
    await asyncio.sleep(LATE_FRAMES_S)
    heard = [subjects.audio_input(session), subjects.text_input(session), subjects.control(session)]
    heard += [subjects.output(stage, session) for stage in STAGES if stage != "transport"]
    for subject in heard:
        try:
            await worker.bus.purge(subject)
        except BusError as error:
            log.warning("journal_not_purged", session=session, error=str(error))
            return
