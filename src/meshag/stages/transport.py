"""Transport: the caller's audio in, the agent's audio out, and an eye on the session's other stages.

hear        caller audio → AudioIn
read        typed text → TextIn
on_frame    Speech → playout · everything else → events for the caller
play_out    every 20 ms: the next frame leaves; PlayStarted and Played tell the others
on_signal   Interrupt: silence at once · Say, Hush: the API asks · Handover, a death: find the stage another owner
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import structlog

from meshag import clock, subjects
from meshag.audio import FRAME_MS, Framer
from meshag.bus.inlet import Inlet
from meshag.bus.outlet import Outlet
from meshag.bus.streams import MEDIA_AGE_S
from meshag.connectors.contracts import Caller, Guest
from meshag.errors import ConfigError, MeshError, OverloadError
from meshag.frames import (
    AnyFrame,
    AudioIn,
    Handover,
    Hush,
    Interrupt,
    OwnerChanged,
    Played,
    PlayStarted,
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    Say,
    Speech,
    SpeechEnded,
    StageFailed,
    TextIn,
    Transcript,
    TurnEnded,
    VoiceStarted,
)
from meshag.ids import SessionId, WorkerId
from meshag.observe import metrics
from meshag.sessions import usage
from meshag.sessions.claims import ensure_owner, find_owner
from meshag.sessions.config import can_say, hears, stages_of
from meshag.sessions.events import EventType
from meshag.sessions.store import Lease, SessionRecord
from meshag.stages.laps import Laps
from meshag.stages.owned import Owned
from meshag.stages.playout import STEP_MS, Playout
from meshag.stages.resuming import NOWHERE, TOLD, Left, Past, catch_up, look_back, parse_place, place_of
from meshag.stages.worker import Worker
from meshag.subjects import Stage
from meshag.turns.history import heard

log = structlog.get_logger("meshag.transport")

AHEAD = 1
"""Steps given to the caller before they are due: what a late tick may cost without being heard."""

RETRY_S = 0.1
"""Between two attempts to find an owner for a stage that has none."""

SAY_BOUND = 16
"""Announcements that wait for the answer on its way; beyond that the oldest is forgotten."""

TOLD_AFTER_S = 2.0
"""The caller is told when a stage has had no owner for this long."""


_SPEAKERS: dict[type[AnyFrame], Stage] = {
    VoiceStarted: "stt",
    Transcript: "stt",
    TurnEnded: "stt",
    ReplyStarted: "llm",
    ReplyChunk: "llm",
    ReplyEnded: "llm",
}
"""Whose words a frame holds."""


class Call(Owned):
    """One caller, connected to a session."""

    stage = "transport"

    def __init__(
        self,
        worker: Worker,
        record: SessionRecord,
        lease: Lease,
        caller: Caller,
        tick: Callable[[], None],
        left: Left | None = None,
    ) -> None:
        """`tick`: called when there is something to play: `play_out` is wanted from now on.

        `left`: where the caller's former connection had come to.
        """
        super().__init__(worker, record, lease)
        self.worker = worker
        self._tick = tick
        self._left = left
        self.began_at = NOWHERE
        """Where the conversation stood before the first event of this call."""
        self._reported: set[int] = set()
        """Turns of which a former call has told how much was heard."""
        self._to_caller = self._to_watchers = True
        """Who is told what the stages say."""
        self.caller = caller
        self.owners: dict[Stage, Lease] = {}
        self._text_outlet = Outlet(
            worker.bus, subjects.text_input(self.session), lease.epoch, worker, worker.acknowledged
        )
        self._audio_outlet = Outlet(worker.bus, subjects.audio_input(self.session), lease.epoch, worker, None)
        self._framer = Framer()
        self._playout = Playout(caller.rate_hz)
        self._play_from_ns = 0
        self._steps_out = 0
        self._turn = 0
        self._answering = 0
        self._ends_ns: dict[int, int] = {}
        self._laps = Laps()
        self._heard_frames = 0
        """Caller audio that has not been counted yet."""
        self._to_say: deque[Say] = deque(maxlen=SAY_BOUND)
        self._said: deque[str] = deque(maxlen=4 * SAY_BOUND)
        """What the API has asked to be said, by id: its messages may come twice."""
        self._replacing: set[Stage] = set()
        self._chunks: dict[int, dict[int, str]] = {}
        """Of the turns whose answers are being heard: the reply's chunks by number, fillers empty."""
        self._present: dict[str, None] = {}
        self._came = asyncio.Event()
        """Somebody has come: the session is in use again."""

    # -- as an owner --------------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        return not self._playout.playing and not self._answering

    def extra_subjects(self) -> dict[str, Stage]:
        """What is heard and answered is followed whatever the flow says: to number turns, and for `_shown`."""
        return {
            subjects.output(stage, self.session): stage for stage in stages_of(self.config) if stage in ("stt", "llm")
        }

    async def warm(self) -> None:
        await self.ensure_owners()
        self.spawn(self._stay_alive())

    async def resume(self) -> None:
        """Another transport had this session: go on where its caller was."""
        stages = [stage for stage in TOLD if self._inlet_of(stage)]
        past = await look_back(self.journal, self.session, stages, await self._control.history())
        self._reported |= past.reported
        for stage in stages:
            if not past.frames[stage]:
                await self._inlets[subjects.output(stage, self.session)].start_live()
        self._hear_again(past)
        self.began_at = self._left.at if self._left and self._left.at else self._place()
        self._go_on_speaking(past)
        self._said.extend(past.said)
        self._to_say.extend(past.to_say)
        self._said.extend(frame.id for frame in past.to_say)
        self._say_next()

    def _hear_again(self, past: Past) -> None:
        """Tell the caller what it has missed; of the turn under way, note what a call has to know."""
        known = parse_place(self._left.at) if self._left else None
        since_ns = clock.wall_ns() - MEDIA_AGE_S * 1000 * clock.MS
        for stage, frame in past.told():
            self._turn = max(self._turn, frame.turn)
            self._to_caller = known is not None and (frame.epoch, frame.seq) >= known[stage]
            self._to_watchers = frame.at_ns > since_ns
            inlet = self._inlet_of(stage)
            if inlet is not None:
                inlet.start_after(frame.epoch, frame.seq)  # for the place that the caller is told
            if frame.turn > past.over or self._to_caller:
                self._tell(frame)
        self._to_caller = self._to_watchers = True
        for stage, frames in past.frames.items():
            inlet = self._inlet_of(stage)
            if frames and inlet is not None:
                inlet.start_after(frames[-1].epoch, frames[-1].seq)
                self._turn = max(self._turn, *(frame.turn for frame in frames))
        self._turn = max(self._turn, past.typed)
        if past.typed > past.over and self._inlet_of("llm"):
            self._answering = max(self._answering, past.typed)
        if self._answering <= max(past.over, past.silenced) or past.is_stale(self._answering):
            self._answering = 0

    def _go_on_speaking(self, past: Past) -> None:
        """Play what the caller has not heard yet of what was being said."""
        left = self._left
        self._playout.interrupt(past.silenced)
        if cut_off := past.cut_off(left):
            self.signal(cut_off)
            self._note_reply(cut_off)
        counted = left.turn if left and left.turn else 0
        if counted and counted <= past.silenced:
            self._tell_over(counted, interrupted=True)
        speech = past.speech(counted or past.over + 1)
        if counted and counted in past.reported and not any(frame.turn == counted for frame in speech):
            self._tell_over(counted, interrupted=False)
        over, heard_ms = catch_up(self._playout, self.caller.rate_hz, speech, left, past.alive_ns)
        for played in over:
            self._played(played)
        turn = self._playout.turn
        if self._playout.playing and (turn in past.begun or turn == counted):
            heard_ms = left.heard_ms if left and turn == counted else heard_ms
            now_ms = clock.wall_ns() // clock.MS
            self.caller.send_event({"type": "speech_resumed", "turn": turn, "heard_ms": heard_ms, "t_ms": now_ms})
        self._start_playing()

    def _inlet_of(self, stage: Stage) -> Inlet | None:
        return self._inlets.get(subjects.output(stage, self.session))

    def _place(self) -> str:
        """Where the conversation stands, for a caller who has to come back."""
        return place_of({stage: self._inlet_of(stage) for stage in TOLD})

    async def _reload(self, version: int) -> None:
        """A changed flow may have stages that nobody owns yet: they are made ready before its first turn."""
        await super()._reload(version)
        if self._next_record is not None:
            self._note_owners(await ensure_owners(self.worker, self._next_record))

    def leave(self) -> None:
        """Nobody else can take a caller's socket: the caller is asked to connect anew, and may until the drain ends."""
        self.caller.send_event({"type": "draining", "t_ms": clock.wall_ns() // clock.MS})

    async def finish(self) -> None:
        await self._count_heard()
        self._text_outlet.close()
        self._audio_outlet.close()
        self.caller.send_event({"type": "session_ended", "reason": self.ending, "t_ms": clock.wall_ns() // clock.MS})
        if not (
            isinstance(self.caller, Guest) and self.ending == "replaced"
        ):  # they are there still, with another agent
            for participant in tuple(self._present):
                self.participant_left(participant, self.ending)
        await self.caller.close(1000, self.ending)

    async def release(self) -> None:
        await super().release()
        await self._text_outlet.release()
        await self._audio_outlet.release()

    async def _stay_alive(self) -> None:
        ttl_s = self.record.ttl_s
        while True:
            try:
                ttl_s = (await self.worker.store.load(self.session)).ttl_s  # it may have been extended
                if self.caller.present:
                    await self.worker.store.touch(self.session, ttl_s)
                await self.worker.store.set_status(self.session, "live" if self.caller.present else "idle")
            except MeshError as error:
                self.log.warning("touch_failed", error=str(error))
            await self._count_heard()
            self._came.clear()
            try:
                async with asyncio.timeout(min(ttl_s / 3, 60)):
                    await self._came.wait()
            except TimeoutError:
                pass

    # -- for those who watch ------------------------------------------------------------------------------------------

    def note(self, kind: EventType, **data: Any) -> None:
        """Tell watchers and webhooks. Costs this call nothing: it leaves soon, whether anybody watches or not."""
        self.worker.events.note(kind, self.session, self.record.key, **data)

    def participant_joined(self, participant: str, **data: Any) -> None:
        """A caller is there. `participant`: a name of its own within the session."""
        if participant not in self._present:
            self._present[participant] = None
            self._came.set()
            transport, once = self.caller.transport, f"joined/{participant}"
            self.note("participant_joined", once=once, participant=participant, transport=transport, **data)

    def participant_left(self, participant: str, reason: str, **data: Any) -> None:
        """That caller has gone. Nothing happens for one who was not there."""
        if participant in self._present:
            del self._present[participant]
            told = {"transport": self.caller.transport, "reason": reason, **data}
            self.note("participant_left", once=f"left/{participant}", participant=participant, **told)

    def _note_reply(self, played: Played) -> None:
        """What the caller heard of an answer, once it is over."""
        chunks = self._chunks.pop(played.turn, {})
        texts = [chunks.get(n, "") for n in range(max(chunks, default=-1) + 1)]
        text = heard(texts, played.n, played.ms, played.chunk_ms) if played.interrupted else "".join(texts)
        if text and self.record.request.enable_transcription:
            once = f"reply/{played.turn}"
            self.note("reply", once=once, turn=played.turn, text=text.strip(), interrupted=played.interrupted)

    async def _count_heard(self) -> None:
        frames, self._heard_frames = self._heard_frames, 0
        if frames:
            await self._tally(0, {usage.HEARD_MS: frames * FRAME_MS}, {})

    # -- the other stages' owners -------------------------------------------------------------------------------------

    async def ensure_owners(self) -> None:
        """See that every stage of the flow has a living owner. Raises OverloadError when one finds none."""
        self._note_owners(await ensure_owners(self.worker, self.record))

    def _note_owners(self, found: dict[Stage, Lease]) -> None:
        for stage, lease in found.items():
            if stage not in self.owners or self.owners[stage].epoch < lease.epoch:
                self.owners[stage] = lease

    def on_death(self, worker: WorkerId) -> None:
        """A worker has died: what it owned of this session needs another."""
        for stage, lease in self.owners.items():
            if lease.worker == worker:
                self._replace(stage, lease.epoch)

    def _replace(self, stage: Stage, epoch: int) -> None:
        if stage not in self._replacing:
            self._replacing.add(stage)
            self.spawn(self._find_another(stage, epoch))

    async def _find_another(self, stage: Stage, epoch: int) -> None:
        started_s, told = clock.monotonic_s(), False
        try:
            while stage in stages_of(self.config) and self._is_gone(stage, epoch):
                epoch = max(epoch, self.owners[stage].epoch)
                try:
                    bus, fleet = self.worker.bus, self.worker.fleet
                    since_s = fleet.last_heard_s(self.owners[stage].worker) or started_s
                    found = await find_owner(bus, fleet, stage, self.session, epoch, since_s=since_s)
                    if found.epoch > self.owners[stage].epoch:
                        self.owners[stage] = found
                except MeshError as error:
                    if not told and clock.monotonic_s() - started_s > TOLD_AFTER_S:
                        told = True
                        self._error(error, stage)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._replacing.discard(stage)

    def _is_gone(self, stage: Stage, epoch: int) -> bool:
        """Whether the owner up to `epoch` has no successor yet, or one that has died before this call knew of it."""
        owner = self.owners[stage]
        return owner.epoch <= epoch or self.worker.fleet.is_dead(owner.worker)

    @property
    def playing(self) -> bool:
        """Whether `play_out` is wanted."""
        return self._play_from_ns > 0

    # -- the caller speaks --------------------------------------------------------------------------------------------

    async def hear(self, pcm: bytes) -> None:
        """Caller audio: PCM16 mono 16 kHz, any whole number of samples."""
        for frame in self._framer.push(pcm):
            self._heard_frames += 1
            await self._audio_outlet.send(AudioIn(pcm=frame))

    async def read(self, text: str) -> None:
        """What the caller typed: a turn of its own. Raises ConfigError when this pipeline takes no text."""
        self.begin_turn()
        stages = stages_of(self.config)
        if "llm" not in stages and not hears(self.config, "tts", "transport", "text"):
            raise ConfigError(
                "this pipeline takes no typed text",
                path="config.pipeline.flow",
                fix='add {"from": "transport", "to": "llm", "stream": "text"}',
                code="text_not_taken",
            )
        if self._answering:
            self._silence()
        self._turn += 1
        self._answering = self._turn
        self._ends_ns[self._turn] = clock.wall_ns()
        self._laps.typed(self._turn)
        # After what `_silence` has said: the llm has to know what was heard of the answer before it gives another.
        self._outbox.put_nowait((self._text_outlet, TextIn(turn=self._turn, text=text)))
        if self.record.request.enable_transcription:
            self.note("transcript", turn=self._turn, text=text, provider="")

    def interrupt(self) -> None:
        """The caller asks for silence."""
        self._silence()
        self._say_next()

    def _silence(self) -> None:
        turn = max(self._answering, self._playout.turn)
        if turn:
            self.signal(Interrupt(turn=turn, source=self.stage))
            self._fall_silent(turn)

    # -- what the API wants said --------------------------------------------------------------------------------------

    def _on_say(self, frame: Say) -> None:
        if frame.id in self._said:
            return
        self._said.append(frame.id)
        if frame.interrupt:
            self._silence()
            self._say(frame)
        else:
            self._to_say.append(frame)
            self._say_next()

    def _say_next(self) -> None:
        """Say what waits, unless something is being answered."""
        if self._to_say and not self._answering and not self._playout.playing:
            self._say(self._to_say.popleft())

    def _say(self, frame: Say) -> None:
        """A turn of its own, whose reply is known."""
        self.begin_turn()
        if can_say(self.config):
            self._turn += 1
            self._answering = self._turn
            said = Say(turn=self._turn, text=frame.text, id=frame.id, source=self.stage)
            self._outbox.put_nowait((self._text_outlet, said))

    # -- the agent speaks ---------------------------------------------------------------------------------------------

    def on_frame(self, frame: AnyFrame) -> None:
        self._turn = max(self._turn, frame.turn)
        self._laps.note(frame)
        if isinstance(frame, Speech):
            self._playout.add(frame)
            self._start_playing()
        elif isinstance(frame, SpeechEnded):
            self._playout.end(frame)
            self._start_playing()
        else:
            self._tell(frame)

    def _start_playing(self) -> None:
        if self._playout.playing and not self._play_from_ns:
            self._play_from_ns = clock.monotonic_ns()
            self._steps_out = 0
            self.play_out(self._play_from_ns)
            self._tick()

    def play_out(self, now_ns: int) -> None:
        """Send what is due. Called every step while there is something to hear."""
        if not self._play_from_ns:
            return
        due = (now_ns - self._play_from_ns) // (STEP_MS * clock.MS) + 1 + AHEAD
        while self._steps_out < due and self._playout.playing:
            before = self._playout.turn
            pcm, done = self._playout.take()
            if pcm:
                self._steps_out += 1
                if self._playout.turn != before:
                    self._first_audio(self._playout.turn)
                self.caller.send_audio(pcm)
            for played in done:
                self._played(played)
        if not self._playout.playing and self._steps_out < due - AHEAD:
            self._play_from_ns = 0  # ran dry: the next audio starts a clock of its own

    def _first_audio(self, turn: int) -> None:
        self.signal(PlayStarted(turn=turn))
        now_ns = clock.wall_ns()
        event = {"type": "speech_started", "turn": turn, "t_ms": now_ns // clock.MS}
        if laps := self._laps.heard(turn):
            self.tally(turn, {}, **laps)
        ended_ns = self._ends_ns.pop(turn, None)
        if ended_ns is not None:
            metrics.VOICE_TO_VOICE_SECONDS.observe(max(0, now_ns - ended_ns) / 1e9)
        self.caller.send_event(event)

    def _played(self, played: Played) -> None:
        if played.turn not in self._reported:
            self.signal(played)
            self._note_reply(played)
        if played.turn >= self._answering:
            self._answering = 0
        self._tell_over(played.turn, interrupted=played.interrupted)
        if not played.interrupted:  # else the caller speaks
            self._say_next()

    def _tell_over(self, turn: int, *, interrupted: bool) -> None:
        now_ms = clock.wall_ns() // clock.MS
        self.caller.send_event({"type": "speech_ended", "turn": turn, "interrupted": interrupted, "t_ms": now_ms})

    def _fall_silent(self, turn: int) -> None:
        played = self._playout.interrupt(turn)
        if played is not None:
            self.caller.drop_audio()
            self._play_from_ns = 0
            self._played(played)
            self._start_playing()

    # -- what the caller is told --------------------------------------------------------------------------------------

    def on_signal(self, frame: AnyFrame) -> None:
        if isinstance(frame, Interrupt):
            self._fall_silent(frame.turn)
        elif isinstance(frame, Say):
            self._on_say(frame)
        elif isinstance(frame, Hush):
            self._to_say.clear()
            self._silence()
        elif isinstance(frame, Handover):
            stage = frame.stage
            if stage in subjects.STAGES and stage != self.stage:
                self._replace(stage, frame.epoch)

    def _on_owner(self, frame: OwnerChanged) -> None:
        super()._on_owner(frame)
        if frame.stage == self.stage or frame.stage not in subjects.STAGES:
            return
        known = self.owners.get(frame.stage)
        if known is None or frame.epoch >= known.epoch:
            self.owners[frame.stage] = Lease(WorkerId(frame.worker), frame.epoch)
            if self.worker.fleet.is_dead(WorkerId(frame.worker)):
                self._replace(frame.stage, frame.epoch)
        if frame.epoch > 1:
            self._event(frame, "owner_changed", stage=frame.stage, worker=frame.worker, epoch=frame.epoch)

    def _tell(self, frame: AnyFrame) -> None:
        if isinstance(frame, VoiceStarted):
            self._event(frame, "voice_started")
        elif isinstance(frame, Transcript):
            self._event(frame, "transcript", text=frame.text, final=frame.final, provider=frame.provider)
            if frame.final and self.record.request.enable_transcription:
                self._note_once(frame, "transcript", text=frame.text, provider=frame.provider)
        elif isinstance(frame, TurnEnded):
            if frame.text and "llm" in stages_of(self.config):
                self._answering = max(self._answering, frame.turn)
                self._ends_ns[frame.turn] = frame.speech_end_ns
            self._event(frame, "turn_ended", text=frame.text, speech_end_ms=frame.speech_end_ns // clock.MS)
            self.begin_turn()
            self._say_next()
        elif isinstance(frame, ReplyStarted):
            self._answering = max(self._answering, frame.turn)
            for turn in [turn for turn in self._chunks if turn < frame.turn - 2]:
                del self._chunks[turn]  # nobody has heard anything of them
            self._event(frame, "reply_started", provider=frame.provider, model=frame.model)
        elif isinstance(frame, ReplyChunk):
            self._event(frame, "reply", n=frame.n, text=frame.text, filler=frame.filler)
            self._chunks.setdefault(frame.turn, {})[frame.n] = "" if frame.filler else frame.text
        elif isinstance(frame, ReplyEnded):
            self._event(frame, "reply_ended", reason=frame.reason)
            if not hears(self.config, "transport", "tts") and frame.reason != "interrupted":
                self._played(Played(turn=frame.turn, n=frame.chunks, ms=0, chunk_ms=0, interrupted=False))
        elif isinstance(frame, StageFailed):
            self._event(frame, "error", stage=frame.stage, code=frame.code, message=frame.message)
            self._note_once(frame, "error", stage=frame.stage, code=frame.code, message=frame.message)

    def _shown(self, stage: Stage) -> bool:
        """Whether the caller sees a stage's text: transcription is enabled, or the flow says so."""
        return self.record.request.enable_transcription or hears(self.config, "transport", stage, "text")

    def _event(self, frame: AnyFrame, kind: str, **fields: Any) -> None:
        speaker: Stage | None = _SPEAKERS.get(type(frame))
        if not self._to_caller or (speaker is not None and not self._shown(speaker)):
            return
        event = {"type": kind, "turn": frame.turn, "t_ms": frame.at_ns // clock.MS, **fields, "at": self._place()}
        self.caller.send_event(event)

    def _note_once(self, frame: AnyFrame, kind: EventType, **data: Any) -> None:
        """Tell those who watch what a stage has said: whoever has this caller next may find it in the journal again."""
        if self._to_watchers:
            once = f"{kind}/{type(frame).__name__}/{frame.epoch}/{frame.seq}"
            self.note(kind, once=once, turn=frame.turn, **data)

    def _error(self, error: MeshError, stage: Stage) -> None:
        self.note("error", turn=self._turn, stage=stage, code=error.code, message=str(error))
        self.caller.send_event(
            {
                "type": "error",
                "turn": self._turn,
                "t_ms": clock.wall_ns() // clock.MS,
                "stage": stage,
                "code": error.code,
                "message": str(error),
            }
        )


async def ensure_owners(worker: Worker, record: SessionRecord) -> dict[Stage, Lease]:
    """An owner, alive and ready to hear, for every stage of the session. Raises OverloadError when one finds none."""
    stages = stages_of(record.request.config)
    asked = (_ensure_owner(worker, record.id, stage) for stage in stages)
    found = await asyncio.gather(*asked, return_exceptions=True)
    owners: dict[Stage, Lease] = {}
    for stage, lease in zip(stages, found, strict=True):  # each has answered: none begins after the session was ended
        if isinstance(lease, BaseException):
            raise lease
        owners[stage] = lease
    return owners


async def _ensure_owner(worker: Worker, session: SessionId, stage: Stage) -> Lease:
    lease = await worker.store.lease(session, stage)
    return await ensure_owner(worker.bus, worker.fleet, stage, session, lease)


class Switchboard:
    """The calls of one transport worker, and their common clock."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._joining: WeakValueDictionary[SessionId, asyncio.Lock] = WeakValueDictionary()
        self._ticker: asyncio.Task[None] | None = None
        self._playing = asyncio.Event()

    async def start(self) -> None:
        """Begin to play out, and to watch over the calls' owners."""
        self.worker.fleet.on_death(self._on_death)
        self._ticker = asyncio.create_task(self._tick())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        if self._ticker:
            self._ticker.cancel()

    @property
    def calls(self) -> list[Call]:
        """The calls connected here."""
        return [owned for owned in self.worker.owned.values() if isinstance(owned, Call)]

    async def connect(self, session: SessionId, caller: Caller, left: Left | None = None) -> Call:
        """Join a caller to a session. A connection that it may have elsewhere gives way. Raises MeshError.

        `left`: where its former connection had come to.
        """
        if self.worker.draining or (self.worker.full and session not in self.worker.owned):
            raise OverloadError("this transport worker takes no more calls")
        async with self._joining.setdefault(session, asyncio.Lock()):  # the newer connection is also held later
            call = await self._join(session, caller, left)
            await self.worker.hold(call)
        if not isinstance(caller, Guest):  # who is in a room is told by the room
            call.participant_joined(f"caller-{call.epoch}")
        for owner in list(call.owners.values()):
            if self.worker.fleet.is_dead(owner.worker):  # it died before this call could be told
                call.on_death(owner.worker)
        metrics.CALLS.set(len(self.calls))
        return call

    async def _join(self, session: SessionId, caller: Caller, left: Left | None) -> Call:
        """An open call under an epoch of its own."""
        store = self.worker.store
        record = await store.load(session)
        lease = await store.lease(session, "transport")
        while True:
            known = lease.epoch if lease else 0
            lease = await store.claim(session, "transport", self.worker.worker_id, known, record.ttl_s)
            if lease.worker == self.worker.worker_id and lease.epoch > known:
                break  # else another transport was faster: its connection is the older one then
        call = Call(self.worker, record, lease, caller, self._playing.set, left)
        await call.open(takeover=lease.epoch > 1)
        return call

    async def disconnect(self, call: Call) -> None:
        """The caller has gone. The session stays until it is ended or expires."""
        await self.worker.part(call)
        metrics.CALLS.set(len(self.calls))
        try:
            lease = await self.worker.store.lease(call.session, "transport")
            if lease is None or lease.epoch <= call.epoch:  # else the caller is connected elsewhere
                await self.worker.store.set_status(call.session, "idle")
        except MeshError as error:
            log.warning("status_unwritten", session=call.session, error=str(error))

    def _on_death(self, worker: WorkerId) -> None:
        for call in self.calls:
            call.on_death(worker)

    async def _tick(self) -> None:
        """The common clock: runs while anybody has something to hear."""
        step_ns = STEP_MS * clock.MS
        while True:
            await self._playing.wait()
            due_ns = clock.monotonic_ns()
            while playing := [call for call in self.calls if call.playing]:
                due_ns = max(due_ns + step_ns, clock.monotonic_ns())
                for call in playing:
                    call.play_out(clock.monotonic_ns())
                await asyncio.sleep((due_ns - clock.monotonic_ns()) / 1e9)
            self._playing.clear()
