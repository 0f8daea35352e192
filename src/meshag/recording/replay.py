"""A recording against the present code: each stage by itself hears what it heard then, and what it says is compared.

One stage at a time, because so a difference stands where it arises: were the stages chained, one turn that ends a
moment later would change all that follows it. The stage is the real one, with its inlets, outlets, journal reading and
takeovers; around it are `stand_ins` in place of the servers, `prompter` in place of the providers, `virtual` time.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import msgspec
import structlog

from meshag import clock
from meshag.connectors.contracts import Caller
from meshag.connectors.registry import Registry
from meshag.errors import ConfigError
from meshag.frames import (
    AudioIn,
    ConfigChanged,
    Frame,
    Interrupt,
    OwnerChanged,
    TextIn,
    VoiceStarted,
    decode,
    encode,
)
from meshag.ids import WorkerId, new_worker_id
from meshag.recording import voice
from meshag.recording.differences import TOLERANCE_MS, Difference, compare, compare_history
from meshag.recording.file import CONTROL, TEXT_INPUT, Recording
from meshag.recording.prompter import TapeRegistry, TapeTools
from meshag.recording.stand_ins import TapeBus, TapeStore, TapeWorker
from meshag.recording.tape import Moment, Ownership, Tape, as_heard, stages_in
from meshag.recording.virtual import Stuck, run, until
from meshag.sessions.config import SessionRequest
from meshag.sessions.store import Lease, SessionRecord
from meshag.sessions.tools import STORED
from meshag.settings import Settings
from meshag.stages.llm import LlmSession
from meshag.stages.owned import Owned
from meshag.stages.stt import SttSession
from meshag.stages.transport import Call, Switchboard
from meshag.stages.tts import TtsSession
from meshag.subjects import Stage

BEFORE_NS = 1_000 * clock.MS
"""A stage opens so long before the first frame."""

MAKES: dict[Stage, Callable[..., Owned]] = {"stt": SttSession, "llm": LlmSession, "tts": TtsSession}


class Replayed(msgspec.Struct):
    """What came of it."""

    session: str
    recorded_with: str
    """The version of MeshAG."""
    stages: list[str]
    turns: int
    """Turns that were compared."""
    differences: list[Difference]
    notes: list[str] = []
    """What could not be compared, and why."""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def replay(recording: Recording) -> Replayed:
    """Run the present stages over a recording. Raises ConfigError for one that cannot be replayed."""
    tape = Tape(recording)
    requests = tape.requests()
    if not requests:
        raise _cannot("it holds no configuration: the session had ended before it was recorded")
    if not tape.moments:
        raise _cannot("it holds no frames")
    stages = stages_in(request.config for request in requests.values())
    found = Replayed(tape.session, recording.header.meshag, list(stages), 0, [])
    if recording.cut_off:
        found.notes.append("the file was cut off: what follows its end is not compared")
    if tape.unknown:
        found.notes.append(f"{tape.unknown} records of a later version were passed over")
    compared: set[int] = set()
    for stage in stages:
        from_ns, began = tape.missing_until_ns(stage), _turns(tape)
        turns = {turn for turn, at_ns in began.items() if at_ns >= from_ns}
        if from_ns and stage != "stt":  # of the turn before, a part is missing
            from_ns = min((began[turn] for turn in turns), default=tape.ended_ns)
        if from_ns:
            found.notes.append(f"{stage}: the recording lacks its audio before turn {min(turns, default='any')}")
        recorded = [moment for moment in tape.moments if moment.stage == stage]
        replayed, exchanges, errors = _run_stage(tape, stage, requests, from_ns, found.notes)
        cut_ns = tape.cut_ns if stage in ("llm", "tts") else (lambda _: tape.ended_ns)
        differences = compare(stage, recorded, replayed, cut_ns)
        if stage == "llm":
            differences += compare_history(recording.said, exchanges)
        found.differences += [Difference(0, stage, "an error", None, error) for error in errors]
        new = max(turns, default=0)
        found.differences += [one for one in differences if one.turn in turns or one.turn > new]
        compared |= turns
    found.turns = len(compared)
    found.differences.sort(key=lambda one: (one.turn, [*stages, "history"].index(one.stage)))
    return found


def _cannot(why: str) -> ConfigError:
    return ConfigError(
        f"it cannot be replayed: {why}",
        path="FILE",
        fix="record a session with `meshag record --follow` while it is live",
        code="recording_incomplete",
    )


def _turns(tape: Tape) -> dict[int, int]:
    """When each turn began."""
    began: dict[int, int] = {}
    for moment in tape.moments:
        frame = moment.frame
        if frame.turn and (isinstance(frame, VoiceStarted | TextIn) or frame.turn not in began):
            began.setdefault(frame.turn, moment.at_ns)
    return began


def _run_stage(
    tape: Tape, stage: Stage, requests: dict[int, SessionRequest], from_ns: int, notes: list[str]
) -> tuple[list[Moment], dict[int, bytes], list[str]]:
    """What the stage says now, the history that it stores, and the errors that it logs."""
    played = _Stage(tape, stage, {version: _lenient(request) for version, request in requests.items()}, from_ns)
    try:
        with ExitStack() as stack:
            errors = stack.enter_context(_listening())
            if stage == "stt" and not voice.can_hear(requests):
                stack.enter_context(voice.recorded_voice(tape))
                notes.append("stt: the voice detector is not installed; voice is taken from the recording")
            run(played.play(), now_ns=(from_ns or tape.began_ns) - BEFORE_NS)
    except Stuck:
        raise _cannot(f"the {stage} stage waits for something that never comes") from None
    return as_heard(played.said), played.store.exchanges, errors + played.errors


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What the stages log is of the past and goes nowhere; errors, which nobody foresaw, are collected."""
    errors: list[str] = []

    def note(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        if method in ("error", "critical", "exception"):
            errors.append(f"{event.get('event')}: {event.get('exc_info') or event.get('error')!r}")
        raise structlog.DropEvent

    former = structlog.get_config()
    structlog.configure(
        processors=[note],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )
    try:
        yield errors
    finally:
        structlog.configure(**former)


def _lenient(request: SessionRequest) -> SessionRequest:
    """The same without deadlines and hedging: what providers did then is known, whatever they may do."""
    asked = request.model_dump(by_alias=True, mode="json")
    for stage in ("stt", "llm", "tts"):
        chosen = asked["config"]["connectors"][stage]
        chosen["hedge_ms"] = None
        chosen["deadlines"] = {"notice_ms": chosen["deadlines"]["notice_ms"]}
    return SessionRequest.model_validate(asked, context=STORED)


class _Stage:
    """One stage's replay."""

    def __init__(self, tape: Tape, stage: Stage, requests: dict[int, SessionRequest], from_ns: int) -> None:
        self.tape, self.stage, self.requests, self.from_ns = tape, stage, requests, from_ns
        self.said: list[Moment] = []
        self.errors: list[str] = []
        version = min(requests)
        record = SessionRecord(tape.session, version, requests[version], "live", 0.0, 86_400)
        self.store = TapeStore(record, {})
        self.bus: TapeBus
        self._owner: Owned | None = None
        self._worker: TapeWorker
        self._switchboard: Switchboard | None = None

    async def play(self) -> None:
        """From the first frame to the last."""
        tape, session = self.tape, self.tape.session
        self.bus = TapeBus()
        first: dict[str, Ownership] = {}
        for one in sorted(tape.owners, key=lambda one: one.epoch):
            if one.at_ns <= max(self.from_ns, tape.began_ns) or one.stage not in first:
                first[one.stage] = one
        for one in first.values():
            self.store.leases[cast("Stage", one.stage)] = Lease(WorkerId(one.worker), one.epoch)
        mine = first.get(self.stage) or Ownership(0, self.stage, new_worker_id(), 1)
        vad = self.store.record.request.config.turns.vad
        registry = TapeRegistry(
            tape, Registry(Settings().connectors), endpointing=vad == "provider", from_ns=self.from_ns
        )
        self._worker = TapeWorker(WorkerId(mine.worker), self.bus, self.store, registry, TapeTools(tape))
        before = [moment for moment in tape.moments if moment.at_ns < self.from_ns]
        for number, moment in enumerate(before):
            frame = moment.frame
            if moment.stage == self.stage:  # said by a former owner: the first one here counts anew
                frame = msgspec.structs.replace(frame, epoch=0, seq=number)
            self.bus.keep(f"{moment.kind}.{session}", encode(frame), moment.at_ns)
            self._note_config(frame)
        for kind in (f"{self.stage}.output", CONTROL, TEXT_INPUT):
            await self.bus.subscribe(f"{kind}.{session}", self._listener(kind))
        if self.stage == "transport":
            self._switchboard = Switchboard(cast("Any", self._worker))
            await self._switchboard.start()
        await self._open(mine, takeover=mine.epoch > 1 or any(moment.stage == self.stage for moment in before))
        for moment in tape.moments[len(before) :]:
            await until(moment.at_ns)
            await self._happen(moment)
            for _ in range(4):  # what follows from it happens before the next
                await asyncio.sleep(0)
        await until(tape.ended_ns + TOLERANCE_MS * clock.MS)
        if self._owner is not None:
            await self._owner.aclose()
        if self._switchboard is not None:
            await self._switchboard.aclose()

    def _listener(self, kind: str) -> Callable[[bytes], None]:
        def listen(data: bytes) -> None:
            moment = Moment(clock.wall_ns(), kind, decode(data))
            if moment.stage == self.stage and moment.at_ns <= self.tape.ended_ns + TOLERANCE_MS * clock.MS:
                self.said.append(moment)

        return listen

    async def _open(self, owner: Ownership, *, takeover: bool) -> None:
        lease = Lease(WorkerId(owner.worker), owner.epoch)
        former, self._worker.worker_id = self._owner, lease.worker
        self.store.leases[self.stage] = lease
        host: Any = self._worker
        if self._switchboard is not None:
            opened: Owned = Call(host, self.store.record, lease, _QuietCaller(), self._switchboard._playing.set)
        else:
            opened = MAKES[self.stage](host, self.store.record, lease)
        try:
            await opened.open(takeover=takeover)
        except Exception as error:  # whatever it is, it belongs to what is reported
            self.errors.append(f"it does not open: {type(error).__name__}: {error}")
            return
        self._owner = self._worker.owned[opened.session] = opened
        if former is not None:
            former.ending = "replaced"
            await former.aclose()

    async def _happen(self, moment: Moment) -> None:
        frame = moment.frame
        self._note_config(frame)
        if isinstance(frame, OwnerChanged) and frame.stage == self.stage:
            if self._owner is None or frame.epoch > self._owner.epoch:
                await self._open(Ownership(moment.at_ns, frame.stage, frame.worker, frame.epoch), takeover=True)
        elif moment.stage != self.stage:
            await self.bus.publish(f"{moment.kind}.{self.tape.session}", encode(frame))
        elif isinstance(self._owner, Call):
            await self._connect(self._owner, moment)

    async def _connect(self, call: Call, moment: Moment) -> None:
        """What the caller did: speak, type, ask for silence."""
        frame = moment.frame
        if isinstance(frame, AudioIn):
            await call.hear(frame.pcm)
        elif isinstance(frame, TextIn):
            await call.read(frame.text)
        elif isinstance(frame, Interrupt) and not self._typed_beside(moment):
            call.interrupt()

    def _typed_beside(self, moment: Moment) -> bool:
        """Whether a typed text has interrupted, which `read` does by itself."""
        return any(abs(at - moment.at_ns) < TOLERANCE_MS // 2 * clock.MS for at, _ in self.tape.of(TextIn))

    def _note_config(self, frame: Frame) -> None:
        if isinstance(frame, ConfigChanged):
            known = [version for version in self.requests if version <= frame.version]
            self.store.record = msgspec.structs.replace(
                self.store.record, version=frame.version, request=self.requests[max(known)]
            )


class _QuietCaller(Caller):
    """Listens."""

    rate_hz = 24_000

    def send_audio(self, pcm: bytes) -> None:
        pass

    def send_event(self, event: dict[str, Any]) -> None:
        pass

    def drop_audio(self) -> None:
        pass

    async def close(self, code: int, reason: str) -> None:
        pass
