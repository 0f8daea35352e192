"""The workers that are alive, as every worker hears them.

A dead process is noticed at once where NATS repeats its disconnect events (the embedded server and the shipped
configuration do), otherwise, and when it is only frozen, by the silence of its heartbeats.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable

import msgspec
import structlog

from meshag import clock, subjects
from meshag.bus.connection import Bus, Subscription
from meshag.ids import SessionId, WorkerId, parse_worker_id
from meshag.observe import metrics
from meshag.subjects import Stage

log = structlog.get_logger("meshag.fleet")

MISSED_BEATS = 4
"""Silence of this many heartbeats is death."""


class Presence(msgspec.Struct, array_like=True, frozen=True):
    """A heartbeat."""

    worker: WorkerId
    stage: str
    owned: int
    """Sessions that it owns."""
    capacity: int
    """Sessions that it takes."""
    draining: bool = False
    leaving: bool = False
    """Its last heartbeat: it has handed over everything."""
    pid: int = 0
    url: str = ""
    """Where callers reach a transport worker, `ws://` or `wss://`; empty: nobody has told it."""


class _Client(msgspec.Struct):
    name: str = ""


class _Disconnect(msgspec.Struct):
    client: _Client


def client_name(stage: Stage, worker: WorkerId) -> str:
    """The name under which a worker's connection is known to NATS."""
    return f"meshag/{stage}/{worker}"


class Fleet:
    """Who is alive."""

    def __init__(self, bus: Bus, heartbeat_ms: int) -> None:
        self._bus = bus
        self._limit_ns = heartbeat_ms * MISSED_BEATS * clock.MS
        self._tick_s = heartbeat_ms / 1000
        self._seen: dict[WorkerId, tuple[Presence, int]] = {}
        self._dead: dict[WorkerId, int] = {}
        self._on_death: list[Callable[[WorkerId], None]] = []
        self._subscriptions: list[Subscription] = []
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen."""
        self._subscriptions = [
            await self._bus.subscribe(subjects.PRESENCE_ALL, self._on_presence),
            await self._bus.subscribe(subjects.DISCONNECTS, self._on_disconnect),
        ]
        self._watch = asyncio.create_task(self._watch_silence())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        if self._watch:
            self._watch.cancel()
        for subscription in self._subscriptions:
            await subscription.close()

    def on_death(self, callback: Callable[[WorkerId], None]) -> None:
        """Call `callback` once for every worker that dies, freezes or leaves."""
        self._on_death.append(callback)

    def workers(self, stage: Stage | None = None) -> list[Presence]:
        """The workers alive, of one stage or of all."""
        return [presence for presence, _ in self._seen.values() if stage in (None, presence.stage)]

    def addresses(self, session: SessionId, besides: WorkerId) -> list[str]:
        """Where else a session's caller may go on, each address once, in an order of the session's own: they spread."""
        there = [one for one in self.workers("transport") if one.url and not one.draining and one.worker != besides]
        there.sort(key=lambda one: hashlib.sha256(f"{one.worker}/{session}".encode()).digest())
        return list(dict.fromkeys(one.url for one in there))

    def least_busy(self, stage: Stage, besides: set[WorkerId]) -> WorkerId | None:
        """The living worker of `stage` with room and the smallest share of it taken; chance decides between equals.

        It counts as one session busier from now on, until its next heartbeat says what is true.
        """
        able = [
            (presence.owned / presence.capacity, random.random(), presence)
            for presence, _ in self._seen.values()
            if presence.stage == stage
            and presence.worker not in besides
            and not presence.draining
            and presence.owned < presence.capacity
        ]
        if not able:
            return None
        chosen = min(able, key=lambda entry: entry[:2])[2]
        _, seen_ns = self._seen[chosen.worker]
        self._seen[chosen.worker] = (msgspec.structs.replace(chosen, owned=chosen.owned + 1), seen_ns)
        return chosen.worker

    def is_dead(self, worker: WorkerId) -> bool:
        """Whether it has been seen to die. False for one never heard of."""
        return worker in self._dead

    def last_heard_s(self, worker: WorkerId) -> float | None:
        """Monotonic time of a dead worker's last sign of life; None for one that is not known to be dead."""
        last_ns = self._dead.get(worker)
        return None if last_ns is None else last_ns / 1e9

    def is_alive(self, worker: WorkerId) -> bool:
        """Whether it has been heard lately."""
        return worker in self._seen

    def _on_presence(self, data: bytes) -> None:
        try:
            presence = msgspec.msgpack.decode(data, type=Presence)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if presence.leaving:
            self._bury(presence.worker, "left")
            return
        self._dead.pop(presence.worker, None)
        self._seen[presence.worker] = (presence, clock.monotonic_ns())

    def _on_disconnect(self, data: bytes) -> None:
        try:
            name = msgspec.json.decode(data, type=_Disconnect).client.name
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        head, _, tail = name.rpartition("/")
        worker = parse_worker_id(tail)
        if worker and head.startswith("meshag/"):
            self._bury(worker, "disconnected")

    def _bury(self, worker: WorkerId, how: str) -> None:
        known = self._seen.pop(worker, None)
        if worker in self._dead:
            return
        self._dead[worker] = known[1] if known else clock.monotonic_ns()
        if len(self._dead) > 10_000:
            del self._dead[next(iter(self._dead))]
        stage = known[0].stage if known else ""
        metrics.WORKERS_GONE.labels(stage if stage in subjects.STAGES else "", how).inc()
        log.info("worker_gone", worker=worker, stage=stage, how=how)
        for callback in tuple(self._on_death):
            try:
                callback(worker)
            except Exception as error:  # the others have to know all the same
                log.error("death_not_taken", worker=worker, error=type(error).__name__, exc_info=error)

    async def _watch_silence(self) -> None:
        last = clock.monotonic_ns()
        while True:
            await asyncio.sleep(self._tick_s)
            now = clock.monotonic_ns()
            late = now - last > self._limit_ns // 2
            last = now
            newest = max((seen for _, seen in self._seen.values()), default=now)
            mute = now - newest > self._limit_ns // 2  # nobody is heard, ourselves included: NATS hangs
            if late or mute or not self._bus.connected:  # we were frozen or are cut off: judge nobody by that silence
                self._seen = {worker: (presence, now) for worker, (presence, _) in self._seen.items()}
                continue
            for worker in [w for w, (_, seen) in self._seen.items() if now - seen > self._limit_ns]:
                self._bury(worker, "silent")
