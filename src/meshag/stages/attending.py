"""Where the agent goes to its callers: the rooms that this transport worker's sessions meet in.

attend      join the room, connect the call, stay until the session ends; lost: come back, later each time
keep        the room's expiry follows the session's
hand_over   draining: give the session up at a quiet moment; whoever finds it joins, and this agent leaves
look        sessions whose agent is gone (its worker died, or gave it up): the worker that they fall to attends them
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import structlog

from meshag import clock
from meshag.connectors.contracts import Booking, TransportConnector
from meshag.errors import MeshError, SessionError
from meshag.ids import SessionId, WorkerId
from meshag.sessions.store import Lease, SessionRecord
from meshag.stages.transport import Call, Switchboard
from meshag.stages.worker import Worker

log = structlog.get_logger("meshag.attending")

FIRST_WAIT_S = 0.5
"""Before the room is joined again; twice as long before each time after that."""

LONGEST_WAIT_S = 30.0

LOOK_S = 5.0
"""How often a worker looks for sessions whose agent is gone, when nothing tells it to."""

DRAINING_LOOK_S = 0.25
"""How often while a worker is draining: it waits for whoever takes its sessions."""

BEING_MADE_S = 10.0
"""A session younger than this may not have been joined yet by the worker that made it."""

KEEP_S = 10.0
"""How often a room's expiry is held against its session's, at most."""

SLACK = 0.25
"""By this part of the session's time to live the room's expiry may lag behind."""


def connector_of(worker: Worker, room: Mapping[str, Any]) -> TransportConnector:
    """The connector that made a session's room. Raises ConfigError when it is not installed here."""
    connector = worker.registry.get("transport", str(room.get("transport")))
    assert isinstance(connector, TransportConnector)
    return connector


def booking_of(record: SessionRecord, connector: TransportConnector) -> Booking:
    """What a session books, as far as its stored request says it: all that matters once the room is there."""
    asked = record.request
    chosen = asked.config.connectors.transport.config.get(connector.name, {})
    return Booking(
        session=record.id,
        base_url="",
        token="",
        options=connector.options.model_validate(chosen),
        name=asked.session_name,
        max_participants=asked.max_participants,
        recording=asked.enable_recording,
        transcription=asked.enable_transcription,
        ttl_s=record.ttl_s,
    )


class Attendance:
    """The rooms that one transport worker is in."""

    def __init__(self, switchboard: Switchboard) -> None:
        self.switchboard = switchboard
        self.worker = switchboard.worker
        self._visits: dict[SessionId, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()

    async def start(self) -> None:
        """Begin to look for sessions whose agent is gone."""
        self.worker.fleet.on_death(lambda worker: self._stirred.set())
        self._looking = asyncio.create_task(self._look())

    async def aclose(self) -> None:
        """Leave every room. Idempotent."""
        tasks = [*self._visits.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def attend(self, session: SessionId) -> None:
        """Be in the session's room from now until it ends, or another worker is there."""
        if session not in self._visits:
            task = self._visits[session] = asyncio.create_task(self._attend(session))
            task.add_done_callback(lambda task: self._over(session, task))

    def _over(self, session: SessionId, task: asyncio.Task[None]) -> None:
        del self._visits[session]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attending_broke", session=session, error=type(error).__name__, exc_info=error)

    # -- one session --------------------------------------------------------------------------------------------------

    async def _attend(self, session: SessionId) -> None:
        wait_s, told = FIRST_WAIT_S, ""
        while not self.worker.draining:
            try:
                record = await self.worker.store.load(session)
                if not record.room or await self._is_elsewhere(session):
                    return
                ending = await self._visit(record)
                if ending == "replaced":
                    return
                wait_s, told = FIRST_WAIT_S, ""
            except SessionError:
                await self._forget(session)
                return
            except MeshError as error:
                if await self._is_over(session):  # whoever ended it took the room down first
                    await self._forget(session)
                    return
                log.warning("room_not_attended", session=session, code=error.code, error=str(error))
                if error.code != told:
                    told = error.code
                    self.worker.events.note(
                        "error", session, record.key, stage="transport", code=error.code, message=str(error)
                    )
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _visit(self, record: SessionRecord) -> str:
        """Be in the room once, from coming to going. Tells why the call ended. Raises ConnectorError."""
        connector = connector_of(self.worker, record.room)
        guest = await connector.attend(booking_of(record, connector), record.room)
        call = None
        company: list[asyncio.Task[None]] = []
        try:
            call = await self.switchboard.connect(record.id, guest)
            log.info("room_joined", session=record.id, epoch=call.epoch)
            company = [
                asyncio.create_task(self._keep(connector, call, dict(record.room))),
                asyncio.create_task(self._hand_over(call)),
            ]
            await guest.run(call)
            return call.ending
        finally:
            for task in company:
                task.cancel()
            await asyncio.gather(*company, return_exceptions=True)
            if call is not None:
                await self.switchboard.disconnect(call)
            await guest.aclose()

    async def _keep(self, connector: TransportConnector, call: Call, room: dict[str, Any]) -> None:
        """Let the room live as long as the session: whoever uses or extends that moves its end."""
        while True:
            ttl_s = call.record.ttl_s
            try:
                left_s = await self.worker.store.remaining_s(call.session)
                if left_s is not None:
                    lag_s = clock.wall_s() + left_s - float(room["expires_at_s"])
                    if lag_s > max(1.0, SLACK * min(ttl_s, left_s)):
                        room = await connector.keep(call.session, room, left_s)
                        await self.worker.store.set_room(call.record, room)
            except MeshError as error:
                log.warning("room_not_kept", session=call.session, error=str(error))
            await asyncio.sleep(min(KEEP_S, ttl_s / 8))

    async def _hand_over(self, call: Call) -> None:
        """When this worker drains, give the session up as soon as nothing is under way, so that another joins."""
        while not self.worker.draining:  # noqa: ASYNC110 - nobody tells when it begins
            await asyncio.sleep(0.1)
        bound_ns = clock.monotonic_ns() + self.worker.settings.drain_ms * clock.MS
        while not call.quiet and clock.monotonic_ns() < bound_ns:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        try:
            await self.worker.store.release(call.session, "transport", Lease(self.worker.worker_id, call.epoch))
        except MeshError as error:
            log.warning("session_not_given_up", session=call.session, error=str(error))

    # -- sessions whose agent is gone ---------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            try:
                await self._find_unattended()
            except MeshError as error:
                log.warning("unattended_not_found", error=str(error))
            leaving = any(one.draining for one in self.worker.fleet.workers("transport"))
            try:
                async with asyncio.timeout(DRAINING_LOOK_S if leaving else LOOK_S):
                    await self._stirred.wait()
            except TimeoutError:
                pass
            self._stirred.clear()

    async def _find_unattended(self) -> None:
        if self.worker.draining or not self.worker.ready:
            return
        now_s = clock.wall_s()
        for session, made_s in await self.worker.store.places.attended():
            if session in self._visits or not self._falls_to_me(session):
                continue
            lease = await self.worker.store.lease(session, "transport")
            if lease is None and now_s - made_s < BEING_MADE_S:
                continue
            if lease is None or not self.worker.fleet.is_alive(lease.worker):
                log.info("room_unattended", session=session)
                self.attend(session)

    def _falls_to_me(self, session: SessionId) -> bool:
        """Each session falls to one of the living, the same as all of them see it."""
        able = [one.worker for one in self.worker.fleet.workers("transport") if not one.draining]
        mine = self.worker.worker_id
        return max([*able, mine], key=lambda worker: _rank(worker, session)) == mine

    async def _is_elsewhere(self, session: SessionId) -> bool:
        lease = await self.worker.store.lease(session, "transport")
        return lease is not None and lease.worker != self.worker.worker_id and self.worker.fleet.is_alive(lease.worker)

    async def _is_over(self, session: SessionId) -> bool:
        try:
            return await self.worker.store.remaining_s(session) is None
        except MeshError:
            return False

    async def _forget(self, session: SessionId) -> None:
        try:
            await self.worker.store.places.leave(session)
        except MeshError as error:
            log.warning("attended_not_forgotten", session=session, error=str(error))


def _rank(worker: WorkerId, session: SessionId) -> bytes:
    return hashlib.sha256(f"{worker}/{session}".encode()).digest()
