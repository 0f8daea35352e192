"""Asking for an owner: "who takes this session?".

The least busy living worker is asked first. A queue group would spread claims without knowing anybody, but a frozen
worker stays in its group until the server's pings fail, and the claims that reach it are lost for that long.
"""

import asyncio

import msgspec

from meshag import clock, subjects
from meshag.bus.connection import Bus
from meshag.errors import BusError, MeshError, OverloadError
from meshag.ids import SessionId, WorkerId
from meshag.sessions.fleet import Fleet
from meshag.sessions.store import Lease
from meshag.subjects import Stage

ATTEMPTS = 4
"""Workers asked before giving up; each that is full says so."""

ANSWER_MS = 5_000
"""A worker answers when it is ready to hear: its providers may have to connect first."""


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """A request to own a stage of a session."""

    session: SessionId
    known_epoch: int = 0
    """The epoch of the owner that is gone or wants to be replaced; 0: none is known."""
    ownerless_ms: int = 0
    """For how long nobody is known to have owned it."""


class Claimed(msgspec.Struct, array_like=True, frozen=True):
    """The answer: who owns it now, or why this worker does not take it."""

    worker: WorkerId = WorkerId("")
    epoch: int = 0
    code: str = ""
    error: str = ""
    retryable: bool = False


async def find_owner(
    bus: Bus, fleet: Fleet, stage: Stage, session: SessionId, known_epoch: int = 0, *, since_s: float | None = None
) -> Lease:
    """A worker of `stage` that owns the session, ready to hear: the least busy that lives and has room.

    `known_epoch`: of the owner that is gone. `since_s`: monotonic time of its last sign of life; None: now.
    Raises OverloadError when no worker has room.
    """
    since_s = clock.monotonic_s() if since_s is None else since_s
    problem: MeshError = OverloadError(f"no {stage} worker is running, or all are full")
    asked: set[WorkerId] = set()
    for _ in range(ATTEMPTS):
        worker = fleet.least_busy(stage, asked)
        if worker is None:
            break
        asked.add(worker)
        try:
            ownerless_ms = int((clock.monotonic_s() - since_s) * 1000)
            claimed = await _ask(bus, fleet, stage, worker, Claim(session, known_epoch, ownerless_ms))
        except MeshError as error:
            problem = OverloadError(f"no {stage} worker answers: {error}")
            continue
        if claimed.worker == worker or fleet.is_alive(claimed.worker):
            return Lease(claimed.worker, claimed.epoch)
        if claimed.worker:  # it took the lease and died before it could say so: ask again, above its epoch
            problem = OverloadError(f"the {stage} worker {claimed.worker} has died")
            known_epoch = max(known_epoch, claimed.epoch)
            asked.discard(worker)
            continue
        problem = MeshError(f"{stage}: {claimed.error}", code=claimed.code, retryable=claimed.retryable)
        if not claimed.retryable:
            break
    raise problem


async def ensure_owner(bus: Bus, fleet: Fleet, stage: Stage, session: SessionId, lease: Lease | None) -> Lease:
    """The holder of `lease` when it lives and says that it owns the session, else another. Raises OverloadError."""
    if lease is None:
        return await find_owner(bus, fleet, stage, session)
    if fleet.is_alive(lease.worker):
        try:
            claimed = await _ask(bus, fleet, stage, lease.worker, Claim(session, lease.epoch - 1))
        except MeshError:
            claimed = Claimed()
        if claimed.worker == lease.worker:
            return Lease(claimed.worker, claimed.epoch)
    return await find_owner(bus, fleet, stage, session, lease.epoch)


async def _ask(bus: Bus, fleet: Fleet, stage: Stage, worker: WorkerId, claim: Claim) -> Claimed:
    """One worker's answer. Raises BusError or OverloadError when it dies, freezes or is silent meanwhile."""
    subject, request = subjects.claim(stage, worker), msgspec.msgpack.encode(claim)
    asking = asyncio.ensure_future(bus.request(subject, request, timeout_ms=ANSWER_MS))
    try:
        while not asking.done():
            await asyncio.wait([asking], timeout=0.05)
            if fleet.is_dead(worker):
                raise BusError(f"the {stage} worker {worker} has died")
        return msgspec.msgpack.decode(asking.result(), type=Claimed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BusError(f"the {stage} worker {worker} answers nonsense") from error
    finally:
        asking.cancel()
