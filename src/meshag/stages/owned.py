"""One stage of one session, in the hands of its owner.

What every stage shares: hearing those that feed it and the control subject, speaking under its epoch, taking a changed
configuration at the next turn, letting go when another worker has taken over.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import structlog

from meshag import subjects
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.bus.inlet import ControlInlet, Inlet
from meshag.bus.journal import Journal
from meshag.bus.outlet import Guard, Outlet
from meshag.connectors.breakers import Breakers, opens
from meshag.connectors.contracts import Connector
from meshag.connectors.failover import Candidate, candidates
from meshag.connectors.registry import Registry
from meshag.connectors.tools import Tools
from meshag.errors import MeshError, StoreError
from meshag.frames import AnyFrame, ConfigChanged, Frame, Handover, OwnerChanged, SessionEnded, StageFailed
from meshag.ids import SessionId, WorkerId
from meshag.observe import metrics
from meshag.sessions.config import SessionConfig, feeds, stages_of
from meshag.sessions.store import Lease, SessionRecord, SessionStore
from meshag.subjects import Stage

log = structlog.get_logger("meshag.stage")

C = TypeVar("C", bound=Connector)

LOOK_AGAIN_S = (0.05, 0.5)
"""After a takeover the journal is read again after these delays."""


class Host(Guard, Protocol):
    """What an owned stage needs of the worker that it lives in."""

    worker_id: WorkerId
    bus: Bus
    store: SessionStore
    registry: Registry
    acknowledged: Acknowledged
    breakers: Breakers
    tools: Tools

    def let_go(self, owned: "Owned", reason: str) -> None:
        """It is over here: close it soon."""
        ...


def subject_of(source: Stage, stream: str, session: SessionId) -> str:
    """Where a stage's output of a kind (`audio` or `text`) is heard."""
    if source == "transport":
        return subjects.audio_input(session) if stream == "audio" else subjects.text_input(session)
    return subjects.output(source, session)


class Owned(ABC):
    """A stage of a session. `open`, then frames arrive by themselves, then `aclose`."""

    stage: ClassVar[Stage]

    def __init__(self, host: Host, record: SessionRecord, lease: Lease) -> None:
        self.host = host
        self.session = record.id
        self.epoch = lease.epoch
        self.journal = Journal(host.bus)
        self._record = record
        self._next_record: SessionRecord | None = None
        acknowledged = None if self.stage == "tts" else host.acknowledged
        self._outlet = Outlet(host.bus, self._output_subject, lease.epoch, host, acknowledged)
        self._signals = Outlet(host.bus, subjects.control(self.session), lease.epoch, host, host.acknowledged)
        self._control = ControlInlet(host.bus, subjects.control(self.session), self._on_control)
        self._inlets: dict[str, Inlet] = {}
        self._outbox: asyncio.Queue[tuple[Outlet, Frame]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._being_opened = False
        self._closed = False
        self._refused: set[str] = set()
        """Providers that will not do what this session's configuration asks for."""
        self.ownerless_ms = 0
        """For how long nobody had owned it before."""
        self.ending = "bye"
        """Why the worker lets go of it."""
        self.log = log.bind(stage=self.stage, session=self.session, epoch=self.epoch)

    # -- for the stages -----------------------------------------------------------------------------------------------

    @property
    def _output_subject(self) -> str:
        return subjects.output(self.stage, self.session)

    @property
    def record(self) -> SessionRecord:
        """The session as configured for the current turn."""
        return self._record

    @property
    def config(self) -> SessionConfig:
        """The configuration for the current turn."""
        return self._record.request.config

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """Whether this is a good moment to hand the session over: nothing is under way."""

    @abstractmethod
    async def warm(self) -> None:
        """Get ready to hear: open what the first turn needs. Raises MeshError when that cannot be."""

    @abstractmethod
    async def resume(self) -> None:
        """Take over: read from the journal what the former owner had not finished, and go on."""

    @abstractmethod
    def on_frame(self, frame: AnyFrame) -> None:
        """A frame of one that feeds this stage, in order, once. Must not block."""

    def on_signal(self, frame: AnyFrame) -> None:  # noqa: B027 - not every stage listens
        """A control frame of the session. Must not block."""

    async def finish(self) -> None:  # noqa: B027 - not every stage holds something
        """Stop working and close what belongs to the session."""

    async def restore(self) -> None:  # noqa: B027 - not every stage keeps something
        """Valkey has forgotten the session: store again what this stage keeps there. May raise StoreError."""

    def say(self, frame: Frame) -> None:
        """Publish `frame` as this stage's output, in the order of the calls."""
        self._outbox.put_nowait((self._outlet, frame))

    def signal(self, frame: Frame) -> None:
        """Publish `frame` on the control subject, in the order of the calls."""
        self._outbox.put_nowait((self._signals, frame))

    async def say_now(self, frame: Frame) -> None:
        """Publish as this stage's output, past the queue: for the media class, which alone speaks on its outlet."""
        await self._outlet.send(frame)

    def able(self, kind: type[C]) -> list[Candidate[C]]:
        """The session's providers that may be asked now, in their order."""
        chosen = self.config.connectors.of(self.stage)
        found = candidates(self.host.registry, self.stage, chosen, kind, self.host.breakers)
        return [one for one in found if one.name not in self._refused] or found

    def provider_failed(self, candidate: Candidate[Any], failure: MeshError) -> None:
        """Note that a call to a provider failed, for this session or for everybody."""
        metrics.PROVIDER_FAILURES.labels(self.stage, candidate.name, failure.code).inc()
        self.log.warning("provider_failed", provider=candidate.name, code=failure.code, error=str(failure))
        self.host.breakers.failed(candidate.name, failure, candidate.options_json, candidate.deadlines)
        if not failure.retryable and not opens(failure):
            self._refused.add(candidate.name)

    def failed(self, turn: int, error: MeshError) -> None:
        """Report that this stage cannot do its part of the turn."""
        metrics.FAILURES.labels(self.stage, error.code).inc()
        self.log.warning("stage_failed", turn=turn, code=error.code, error=str(error))
        self.say(StageFailed(turn=turn, stage=self.stage, code=error.code, message=str(error)))

    def tally(self, turn: int, used: Mapping[str, int], **latency_ms: int) -> None:
        """Count what the turn has cost (`sessions/usage.py`), aside: no turn waits for it, none fails of it."""
        counts = {name: count for name, count in used.items() if count}
        if counts or latency_ms:
            self.spawn(self._tally(turn, counts, latency_ms))

    async def _tally(self, turn: int, counts: Mapping[str, int], latency_ms: Mapping[str, int]) -> None:
        try:
            ttl_s = self.record.ttl_s
            await self.host.store.usage.add(self.session, self.stage, turn, counts, latency_ms, ttl_s)
        except StoreError as error:
            self.log.warning("usage_not_counted", turn=turn, error=str(error))

    def leave(self) -> None:
        """The worker is draining: ask for another owner."""
        self.signal(Handover(stage=self.stage, worker=self.host.worker_id, source=self.stage))

    def begin_turn(self) -> None:
        """A turn begins: a changed configuration holds from here."""
        if self._next_record is not None:
            self._record, self._next_record = self._next_record, None
            self._refused.clear()
            self.reconfigured()
            self.spawn(self._wire())

    def reconfigured(self) -> None:  # noqa: B027 - not every stage caches something
        """The configuration has changed: drop what was made from the old one."""

    def spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        """Run `work` as part of this session: cancelled with it, its failure logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def extra_subjects(self) -> dict[str, Stage]:
        """Subjects to hear besides those of the flow, with who speaks there."""
        return {}

    def inlet(self, subject: str) -> Inlet | None:
        """The inlet for a subject, if this stage hears it."""
        return self._inlets.get(subject)

    # -- for the worker -----------------------------------------------------------------------------------------------

    async def open(self, *, takeover: bool) -> None:
        """Begin. `takeover`: there was an owner before. Raises MeshError, and is closed then.

        Also when it was let go of meanwhile it is closed, and nothing is raised: see `closed`.
        """
        self._being_opened = True
        try:
            self.spawn(self._speak())
            await self._control.open()
            await self.warm()
            await self._wire(hold=True)
            if takeover:
                await self.resume()
            else:
                await self.hear_from_now()
            for inlet in self._inlets.values():
                if inlet.holding:
                    inlet.replay([])
            self.signal(OwnerChanged(stage=self.stage, worker=self.host.worker_id, source=self.stage))
            if takeover:
                self.spawn(self._look_again())
        except BaseException:
            self._closed = True
            await self._take_down()
            raise
        self._being_opened = False
        if self._closed:
            await self._take_down()

    @property
    def closed(self) -> bool:
        """Whether it was let go of."""
        return self._closed

    async def aclose(self) -> None:
        """Let go. Idempotent. While it is being opened it falls silent at once, and `open` closes the rest."""
        if self._closed:
            return
        self._closed = True
        self._outlet.close()
        self._signals.close()
        if not self._being_opened:
            await self._take_down()

    async def _take_down(self) -> None:
        self._outlet.close()
        self._signals.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.finish()
        await self._control.aclose()
        for inlet in self._inlets.values():
            await inlet.aclose()
            for fate, count in (("healed", inlet.healed), ("lost", inlet.lost), ("stale", inlet.stale)):
                metrics.FRAMES.labels(self.stage, fate).inc(count)

    async def release(self) -> None:
        """The worker has made sure that it still owns this: say what was held back."""
        await self._outlet.release()
        await self._signals.release()

    async def hear_from_now(self) -> None:
        """Nothing that was said before this stage was opened is its business, everything from now on is."""
        await asyncio.gather(*(inlet.start_live() for inlet in self._inlets.values()))

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _wire(self, *, hold: bool = False) -> None:
        wanted = {subject_of(edge.from_, edge.stream, self.session) for edge in feeds(self.config, self.stage)}
        wanted |= set(self.extra_subjects())
        for subject in [subject for subject in self._inlets if subject not in wanted]:
            await self._inlets.pop(subject).aclose()
        for subject in wanted - self._inlets.keys():
            paced = subjects.stream_of(subject) == subjects.AUDIO_INPUT
            inlet = self._inlets[subject] = Inlet(self.host.bus, subject, self._deliver, paced=paced)
            await inlet.open(hold=hold)

    async def _look_again(self) -> None:
        """What the dead owner was sent at its last moment may have been stored after the journal was read."""
        for delay_s in LOOK_AGAIN_S:
            await asyncio.sleep(delay_s)
            for inlet in self._inlets.values():
                inlet.heal()

    def _deliver(self, frame: AnyFrame) -> None:
        if not self._closed:
            self.on_frame(frame)

    async def _speak(self) -> None:
        while True:
            outlet, frame = await self._outbox.get()
            try:
                await outlet.send(frame)
            except MeshError as error:
                self.log.warning("frame_not_sent", frame=type(frame).__name__, error=str(error))

    def _on_control(self, frame: AnyFrame) -> None:
        if self._closed:
            return
        if isinstance(frame, SessionEnded):
            self.host.let_go(self, frame.reason)
        elif isinstance(frame, ConfigChanged):
            self.spawn(self._reload(frame.version))
        elif isinstance(frame, OwnerChanged):
            self._on_owner(frame)
        else:
            self.on_signal(frame)

    def _on_owner(self, frame: OwnerChanged) -> None:
        if frame.stage == self.stage:
            if frame.epoch > self.epoch:
                self.host.let_go(self, "replaced")
            return
        for subject, inlet in self._inlets.items():
            if subject.startswith(f"{frame.stage}.output."):
                inlet.fence(frame.epoch)

    async def _reload(self, version: int) -> None:
        if version <= (self._next_record or self._record).version:
            return
        record = await self.host.store.load(self.session)
        if self.stage != "transport" and self.stage not in stages_of(record.request.config):
            self.host.let_go(self, "no longer in the flow")
        self._next_record = record

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, MeshError):  # foreseen: the session has gone, a server does not answer
            self.log.warning("task_gave_up", code=error.code, error=str(error))
        else:
            self.log.error("task_failed", error=type(error).__name__, exc_info=error)


Make = Callable[[Host, SessionRecord, Lease], Owned]
"""Makes a stage's `Owned` for a session."""
