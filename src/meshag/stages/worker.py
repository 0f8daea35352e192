"""A worker: one process that owns a stage of many sessions.

start       connect, load the models, say that it lives, listen for claims
on_claim    take the lease, begin (or take over), answer when ready to hear
drain       take no more, hand each session over at its next quiet moment, leave
"""

import asyncio
import os
from collections.abc import Callable
from weakref import WeakValueDictionary

import msgspec
import structlog

from meshag import clock, subjects
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus, Subscription
from meshag.connectors.addresses import Hosts
from meshag.connectors.breakers import Breakers
from meshag.connectors.registry import Registry
from meshag.connectors.tools import Tools
from meshag.errors import MeshError, OverloadError, StoreError
from meshag.ids import SessionId, new_worker_id
from meshag.observe import metrics
from meshag.sessions.claims import Claim, Claimed
from meshag.sessions.events import Events
from meshag.sessions.fleet import MISSED_BEATS, Fleet, Presence, client_name
from meshag.sessions.store import Lease, SessionStore
from meshag.settings import Settings
from meshag.stages.owned import Make, Owned
from meshag.subjects import Stage

log = structlog.get_logger("meshag.worker")

LAST_CALL_MS = 2_000
"""After the bound of a drain, the time to hand over what was not quiet until then."""

CHECK_S = 5.0
"""How often a worker looks whether its sessions are still there."""


class Worker:
    """Make it, `start()` it, and later `drain()` and `aclose()` it. It is the `Host` of what it owns."""

    def __init__(self, stage: Stage, settings: Settings, registry: Registry, make: Make | None) -> None:
        """`make`: what answers claims; None for transport, whose sessions come with their callers.

        Raises ConfigError for a setting that cannot be read.
        """
        self.hosts = Hosts(settings.tool_hosts)
        self.stage = stage
        self.settings = settings
        self.registry = registry
        self.worker_id = new_worker_id()
        self.bus: Bus
        self.store: SessionStore
        self.fleet: Fleet
        self.acknowledged: Acknowledged
        self.events: Events
        self.breakers: Breakers
        self.tools: Tools
        self.owned: dict[SessionId, Owned] = {}
        self.draining = False
        self.ready = False
        self.url = ""
        """Where callers reach it: transport's alone."""
        self.on_drain: Callable[[], None] = lambda: None
        """Called when somebody asks this worker to hand over and end."""
        self._make = make
        self._claims: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: WeakValueDictionary[SessionId, asyncio.Lock] = WeakValueDictionary()
        self._last_beat_ns = clock.monotonic_ns()
        self._checked = True
        self._limit_ns = settings.heartbeat_ms * MISSED_BEATS * clock.MS
        self._expires_ns: dict[SessionId, int] = {}

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and take sessions. Raises BusError or StoreError when a server is missing, ModelError for a model."""
        await self.connect()
        await self.warm()
        await self.open_claims()

    async def connect(self) -> None:
        """Reach NATS and Valkey, and begin to say that this worker lives."""
        name = client_name(self.stage, self.worker_id)
        self.store = await SessionStore.connect(
            self.settings.valkey_url, allow_volatile=self.settings.allow_volatile_valkey
        )
        self.bus = await Bus.connect(self.settings.nats_url, name=name, replicas=self.settings.nats_replicas)
        self.acknowledged = Acknowledged(self.bus)
        await self.acknowledged.start()
        self.events = Events(self.acknowledged)
        self.fleet = Fleet(self.bus, self.settings.heartbeat_ms)
        await self.fleet.start()
        self.breakers = Breakers(self.bus, self.fleet, self.registry, self.stage, self.worker_id)
        await self.breakers.start()
        self.tools = Tools(self.bus, self.hosts)
        metrics.CAPACITY.labels(self.stage).set(self.settings.capacity)

    async def warm(self) -> None:
        """Load what the available connectors share, so that no caller waits for it."""
        for name in self.registry.names(self.stage):
            try:
                connector = self.registry.get(self.stage, name)
                if connector.availability().available:
                    await connector.warm()
                    log.info("connector_ready", stage=self.stage, provider=name)
                else:
                    log.info("connector_absent", stage=self.stage, provider=name, why=connector.availability().detail)
            except MeshError as error:
                log.error("connector_broken", stage=self.stage, provider=name, error=str(error))

    async def open_claims(self) -> None:
        """Take sessions from now on."""
        self._last_beat_ns = clock.monotonic_ns()
        self._spawn(self._beat())
        self._spawn(self._look_after())
        if self._make is not None:
            subject = subjects.claim(self.stage, self.worker_id)
            self._claims = await self.bus.serve(subject, self.on_claim)
        await self.bus.serve(subjects.drain(self.stage, self.worker_id), self._asked_to_drain)
        self.ready = True
        log.info("worker_ready", stage=self.stage, worker=self.worker_id, pid=os.getpid())

    async def _asked_to_drain(self, data: bytes) -> bytes:
        log.info("drain_asked", stage=self.stage, worker=self.worker_id)
        self.on_drain()
        return b""

    async def drain(self) -> None:
        """Hand every session over, each at its next quiet moment, or after the bound in mid-turn; then say goodbye."""
        self.draining, self.ready = True, False
        if self._claims:
            await self._claims.close()
        log.info("draining", stage=self.stage, worker=self.worker_id, sessions=len(self.owned))
        bound_ns = clock.monotonic_ns() + self.settings.drain_ms * clock.MS
        asked: set[SessionId] = set()
        while self.owned and clock.monotonic_ns() < bound_ns + LAST_CALL_MS * clock.MS:
            for session, owned in list(self.owned.items()):
                if session not in asked and (owned.quiet or clock.monotonic_ns() > bound_ns):
                    asked.add(session)
                    await self._leave(owned)
            await asyncio.sleep(0.02)
        log.info("drained", stage=self.stage, worker=self.worker_id, left=len(self.owned))

    async def _leave(self, owned: Owned) -> None:
        """Ask for another owner; without a caller there is nobody to find one, and no hurry to have one."""
        try:
            waiting = (await self.store.load(owned.session)).status != "live"
        except MeshError:
            waiting = False
        if waiting and self.stage != "transport":
            await self.part(owned)
        else:
            owned.leave()

    async def aclose(self) -> None:
        """Stop everything. Idempotent."""
        self.ready = False
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "tools"):
            await self._publish_presence(leaving=True)
            for owned in list(self.owned.values()):
                await self.part(owned)
        for part in ("tools", "breakers", "fleet", "events", "acknowledged"):
            if hasattr(self, part):
                await getattr(self, part).aclose()
        if hasattr(self, "bus"):
            await self.bus.close()
        if hasattr(self, "store"):
            await self.store.aclose()
        await self.registry.aclose()

    # -- claims -------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether it owns as many sessions as it takes."""
        return len(self.owned) >= self.settings.capacity

    async def on_claim(self, data: bytes) -> bytes:
        """Answer "who takes this session?": take the lease, begin, and say so when ready to hear."""
        claim = msgspec.msgpack.decode(data, type=Claim)
        lock = self._claiming.setdefault(claim.session, asyncio.Lock())
        async with lock:
            try:
                claimed = await self._take(claim)
                result = "taken" if claimed.worker == self.worker_id else "refused"
            except MeshError as error:
                claimed = Claimed(code=error.code, error=str(error), retryable=error.retryable)
                result = error.code
            except Exception as error:  # of a connector's: unanswered, the asker would wait for its deadline
                log.error("claim_failed", session=claim.session, error=type(error).__name__, exc_info=error)
                claimed = Claimed(code="provider_failed", error=type(error).__name__, retryable=True)
                result = "provider_failed"
        metrics.CLAIMS.labels(self.stage, result).inc()
        return msgspec.msgpack.encode(claimed)

    async def _take(self, claim: Claim) -> Claimed:
        mine = self.owned.get(claim.session)
        if mine is not None and mine.epoch > claim.known_epoch:
            return Claimed(worker=self.worker_id, epoch=mine.epoch)
        if self.full or self.draining:
            raise OverloadError("this worker is full" if self.full else "this worker is draining")
        started_ns = clock.monotonic_ns()
        record = await self.store.load(claim.session)
        lease = await self.store.claim(claim.session, self.stage, self.worker_id, claim.known_epoch, record.ttl_s)
        if lease.worker != self.worker_id:
            return Claimed(worker=lease.worker, epoch=lease.epoch)
        if mine is not None:
            await self.part(mine)
        assert self._make is not None
        owned = self._make(self, record, lease)
        owned.ownerless_ms = claim.ownerless_ms
        takeover = lease.epoch > 1
        try:
            await owned.open(takeover=takeover)
        except BaseException:
            await self._release(owned, lease)
            raise
        self._own(owned)
        if takeover:
            metrics.TAKEOVERS.labels(self.stage).inc()
            metrics.TAKEOVER_SECONDS.labels(self.stage).observe((clock.monotonic_ns() - started_ns) / 1e9)
            owned.log.info("taken_over", worker=self.worker_id)
        return Claimed(worker=self.worker_id, epoch=lease.epoch)

    async def _release(self, owned: Owned, lease: Lease) -> None:
        """Whoever is asked next shall not believe that this worker owns it."""
        try:
            await self.store.release(owned.session, self.stage, lease)
        except StoreError as error:
            owned.log.warning("lease_not_released", error=str(error))

    def let_go(self, owned: Owned, reason: str) -> None:
        """It is over here: close it soon."""
        log.info("letting_go", stage=self.stage, session=owned.session, epoch=owned.epoch, reason=reason)
        owned.ending = reason
        self._spawn(self.part(owned))

    async def part(self, owned: Owned) -> None:
        """Close what is owned, or was until another took its place. Idempotent."""
        if self.owned.get(owned.session) is owned:
            del self.owned[owned.session]
            self._expires_ns.pop(owned.session, None)
            metrics.OWNED.labels(self.stage).set(len(self.owned))
        await owned.aclose()

    async def hold(self, owned: Owned) -> None:
        """Own what was opened here without a claim: a call. One of the same session that was held gives way."""
        former = self.owned.get(owned.session)
        self._own(owned)
        if former is not None:
            former.ending = "replaced"
            await former.aclose()

    def _own(self, owned: Owned) -> None:
        if owned.closed:  # let go of while it was being opened
            return
        self.owned[owned.session] = owned
        self._expires_ns[owned.session] = clock.monotonic_ns() + owned.record.ttl_s * 1000 * clock.MS
        metrics.OWNED.labels(self.stage).set(len(self.owned))

    # -- alive, and sure of it ----------------------------------------------------------------------------------------

    def sure(self) -> bool:
        """Whether no peer can have taken this worker for dead. False after a freeze, until the leases are checked."""
        if self._checked and clock.monotonic_ns() - self._last_beat_ns > self._limit_ns:
            self._checked = False
        return self._checked

    async def _beat(self) -> None:
        while True:
            if not self.sure():
                await self._make_sure()
            self._last_beat_ns = clock.monotonic_ns()
            await self._publish_presence()
            await asyncio.sleep(self.settings.heartbeat_ms / 1000)

    async def _publish_presence(self, *, leaving: bool = False) -> None:
        presence = Presence(
            self.worker_id,
            self.stage,
            len(self.owned),
            self.settings.capacity,
            self.draining,
            leaving,
            pid=os.getpid(),
            url=self.url,
        )
        try:
            await self.bus.publish(subjects.worker(self.stage, self.worker_id), msgspec.msgpack.encode(presence))
        except MeshError:
            pass  # the bus is down: nobody is judged by silence then

    async def _make_sure(self) -> None:
        """This process was frozen: others may own its sessions now. Look, before another word is said."""
        for session, owned in list(self.owned.items()):
            try:
                lease = await self.store.lease(session, self.stage)
            except StoreError:
                continue  # nobody can have claimed without Valkey; older epochs are dropped by everybody anyway
            if lease is not None and lease.epoch > owned.epoch:
                log.warning("lease_lost", stage=self.stage, session=session, epoch=owned.epoch)
                await self.part(owned)
        self._last_beat_ns = clock.monotonic_ns()
        self._checked = True
        for owned in list(self.owned.values()):
            await owned.release()

    # -- the sessions' own time ---------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            for session in list(self.owned):
                try:
                    await self._check(session)
                except MeshError as error:
                    log.warning("check_failed", session=session, error=str(error))
                    break

    async def _check(self, session: SessionId) -> None:
        """End a session that has expired; put back one that a flushed Valkey has forgotten."""
        owned = self.owned.get(session)
        left_s = await self.store.remaining_s(session)
        now = clock.monotonic_ns()
        if owned is None:
            return
        if left_s is not None:
            self._expires_ns[session] = now + left_s * 1000 * clock.MS
        elif now >= self._expires_ns.get(session, 0):
            self.let_go(owned, "expired")
        elif await self.store.has_ended(session):
            self.let_go(owned, "ended")
        else:
            log.warning("session_restored", session=session)
            record = owned.record
            lease = Lease(self.worker_id, owned.epoch)
            await self.store.restore_lease(session, self.stage, lease, record.ttl_s)
            await self.store.put(record)
            await owned.restore()

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, MeshError):  # foreseen: the session has gone, a server does not answer
            log.warning("task_gave_up", code=error.code, error=str(error))
        else:
            log.error("task_failed", error=type(error).__name__, exc_info=error)
