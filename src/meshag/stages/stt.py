"""Speech to text: caller audio in; voice activity, transcripts and ends of turns out.

on_frame      a frame of caller audio → voice activity → endpointer → _on_event
_on_event     voice began: VoiceStarted · agent interrupted: Interrupt · turn over: recogniser, finish
_listen       what the recogniser hears: Transcript (interim), Transcript (final) and TurnEnded
_reopen       the recogniser broke or is late: the next one hears the utterance again, faster than it was spoken
resume        the former owner is gone: hear its unfinished turn again from the journal
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

from meshag import clock
from meshag.audio import FRAME_MS
from meshag.connectors.contracts import Heard, Options, SttConnector, SttStream
from meshag.connectors.failover import AllFailed, Candidate, as_failure, connected
from meshag.errors import ConfigError, ConnectorError, MeshError, ProviderTimeout
from meshag.frames import (
    AnyFrame,
    AudioIn,
    Interrupt,
    Played,
    Say,
    StageLate,
    TextIn,
    Transcript,
    TurnEnded,
    TurnLikely,
    VoiceStarted,
)
from meshag.models.catalogue import find
from meshag.models.store import path
from meshag.observe import metrics
from meshag.sessions import usage
from meshag.sessions.config import Turns, stages_of
from meshag.settings import Settings
from meshag.stages.owned import Owned, subject_of
from meshag.subjects import Stage
from meshag.turns.endpointing import (
    BargeIn,
    Endpointer,
    FalseStart,
    TurnEnd,
    TurnEvent,
    TurnSettings,
    VoicePause,
    VoiceResume,
    VoiceStart,
)
from meshag.turns.vad import WINDOW_MS, SileroModel, SileroVad

BEFORE_VOICE = 50
"""Frames that a takeover hears before the voice began, so that its detector has settled: one second. Of voice that
nobody has noticed yet, what was spoken since the former owner was missed comes to it."""

RECENT = 60_000 // FRAME_MS
"""Frames that another provider hears again where the providers find the turns."""

TRY_AGAIN_S = 1.0
"""After every provider has failed, they are tried again after this long, or at the next end of a turn."""

ANSWER_BOUND_MS = 90_000
"""An answer that nobody reports as played is over after this long."""


@dataclass
class Utterance:
    """One turn's audio, kept until it is recognised: another provider may have to hear it again."""

    turn: int
    pcm: list[bytes] = field(default_factory=list)
    audio_seq: int = 0
    """The last frame, when the turn has ended."""
    audio_epoch: int = 0
    speech_end_ns: int = 0
    finished_ns: int = 0
    """Monotonic time at which the recogniser was asked for the final; 0 before."""
    text: str = ""
    likely: str = ""
    """What the recogniser takes for the whole turn, as long as it thinks that the caller has probably finished."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its end has been published."""


class SttSession(Owned):
    """One session's ears."""

    stage = "stt"
    _silero: SileroModel | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._turn = 0
        self._answering = 0
        self._answering_since_ns = 0
        self._vad: SileroVad | None = None
        self._endpointer = Endpointer(_settings(self.config.turns))
        self._preroll: deque[bytes] = deque(maxlen=max(1, self.config.turns.preroll_ms // FRAME_MS))
        self._current: Utterance | None = None
        self._finishing: deque[Utterance] = deque()
        self._stream: SttStream | None = None
        self._candidate: Candidate[SttConnector] | None = None
        """Whose stream it is."""
        self._hedge: tuple[Candidate[SttConnector], SttStream] | None = None
        """A second one that hears a late utterance beside it."""
        self._tried: set[str] = set()
        """Providers that have failed since something was last recognised."""
        self._paused = False
        self._opening = asyncio.Lock()
        self._forget_switches = self.host.breakers.on_change(self._on_switch)
        self._last_frame: AudioIn | None = None
        self._recent: deque[bytes] = deque(maxlen=RECENT)
        """Where the provider finds the turns: what it may still be making one of."""
        self._used: Counter[str] = Counter()
        """What has been fed to whom since a turn last ended."""

    @property
    def quiet(self) -> bool:
        return self._current is None and not self._finishing

    @property
    def _agent_busy(self) -> bool:
        bound = clock.monotonic_ns() - self._answering_since_ns < ANSWER_BOUND_MS * clock.MS
        return self._answering > 0 and bound

    def extra_subjects(self) -> dict[str, Stage]:
        return {subject_of("transport", "text", self.session): "transport"}

    async def warm(self) -> None:
        if self.config.turns.vad == "silero":
            self._vad = SileroVad(self._silero_model())
        try:
            await self._open_first()
        except MeshError:
            if self.epoch == 1:
                raise
            self.spawn(self._try_again())  # the session has begun: it goes on, whatever its providers do
        finally:
            self._tried.clear()

    @classmethod
    def _silero_model(cls) -> SileroModel:
        if SttSession._silero is None:
            SttSession._silero = SileroModel(path(find("silero-vad"), Settings().cache_dir))
        return SttSession._silero

    # -- caller audio -------------------------------------------------------------------------------------------------

    def on_frame(self, frame: AnyFrame) -> None:
        if isinstance(frame, (TextIn, Say)):
            self._turn = max(self._turn, frame.turn)
            self._expect_answer(frame.turn)
        elif isinstance(frame, AudioIn):
            self._last_frame = frame
            if self._vad is not None:
                self._hear(frame, self._vad)
            else:
                self._recent.append(frame.pcm)
                if self._stream is not None:
                    self._stream.feed(frame.pcm)
                    self._used[self._provider] += 1

    def _hear(self, frame: AudioIn, vad: SileroVad) -> None:
        if self._current is not None:
            self._feed(self._current, frame.pcm)
        else:
            self._preroll.append(frame.pcm)
        for probability in vad.push(frame.pcm):
            for event in self._endpointer.push(probability, WINDOW_MS, self._agent_busy):
                self._on_event(event, frame)

    def _on_event(self, event: TurnEvent, frame: AudioIn) -> None:
        if isinstance(event, VoiceStart):
            self._voice_started(frame)
        elif isinstance(event, BargeIn):
            self._interrupt()
        elif isinstance(event, FalseStart) and self._current is not None:
            utterance, self._current = self._current, None
            if self._stream is not None:
                self._stream.reset()
            utterance.audio_seq, utterance.audio_epoch, utterance.speech_end_ns = frame.seq, frame.epoch, frame.at_ns
            self._turn_ended(utterance, "")
        elif isinstance(event, VoicePause):
            self._paused = True
        elif isinstance(event, VoiceResume):
            self._paused = False
        elif isinstance(event, TurnEnd):
            silence_ms = self._endpointer.now_ms - event.speech_end_ms
            self._turn_over(frame, frame.at_ns - silence_ms * clock.MS)

    def _voice_started(self, frame: AudioIn) -> None:
        self.begin_turn()
        self._turn += 1
        self._current = Utterance(self._turn)
        self._paused = False
        self._say_started(frame)
        if self._stream is not None and self._stream.interims and self._candidate is not None:
            self.spawn(self._wait_interim(self._current, self._stream, self._candidate))
        for pcm in self._preroll:
            self._feed(self._current, pcm)
        self._preroll.clear()

    def _feed(self, utterance: Utterance, pcm: bytes) -> None:
        utterance.pcm.append(pcm)
        if self._stream is not None:
            self._stream.feed(pcm)
            self._used[self._provider] += 1

    def _say_started(self, frame: AudioIn) -> None:
        started = VoiceStarted(turn=self._turn, audio_seq=frame.seq, audio_epoch=frame.epoch, at_ns=frame.at_ns)
        self.say(started)

    def _turn_over(self, frame: AudioIn, speech_end_ns: int) -> None:
        utterance, self._current = self._current, None
        if utterance is None:
            return
        utterance.audio_seq, utterance.audio_epoch = frame.seq, frame.epoch
        utterance.speech_end_ns = speech_end_ns
        utterance.finished_ns = clock.monotonic_ns()
        self._finishing.append(utterance)
        if self._stream is not None:
            self._stream.finish()
        else:
            self.spawn(self._reopen())
        self.spawn(self._wait_final(utterance))

    # -- who is being answered ----------------------------------------------------------------------------------------

    def on_signal(self, frame: AnyFrame) -> None:
        if isinstance(frame, Played) and frame.turn >= self._answering:
            self._answering = 0

    def _expect_answer(self, turn: int) -> None:
        if "llm" in stages_of(self.config) and turn >= self._answering:
            self._answering, self._answering_since_ns = turn, clock.monotonic_ns()

    def _interrupt(self) -> None:
        metrics.INTERRUPTIONS.inc()
        self.signal(Interrupt(turn=self._answering, source=self.stage))

    # -- the recogniser -----------------------------------------------------------------------------------------------

    @property
    def _provider(self) -> str:
        return "" if self._candidate is None else self._candidate.name

    def _left(self) -> list[Candidate[SttConnector]]:
        """Who may be asked now."""
        able = self.able(SttConnector)  # type: ignore[type-abstract]
        return [one for one in able if one.name not in self._tried]

    async def _open_first(self) -> None:
        """Open the first provider that works. Raises MeshError when none does, and leaves what is open as it is."""
        problem: MeshError = ConfigError("no stt provider of this session is available here", code="provider_unknown")
        while asked := self._left():
            candidate = asked[0]
            try:
                stream = await self._opened(candidate)
            except Exception as error:
                problem = as_failure(error, candidate.name)
                self._tried.add(candidate.name)
                self.provider_failed(candidate, problem)
                continue
            if self._vad is None and not stream.endpointing:
                await stream.aclose()
                raise ConfigError(
                    f"turns.vad is 'provider', but '{candidate.name}' does not find the ends of turns",
                    path="config.turns.vad",
                    fix="set it to 'silero'",
                )
            self._stream, self._candidate = stream, candidate
            self.spawn(self._listen(candidate, stream))
            return
        raise problem

    async def _opened(self, candidate: Candidate[SttConnector]) -> SttStream:
        opening = candidate.connector.open(candidate.options)
        stream: SttStream = await connected(opening, candidate.deadlines, candidate.name)
        return stream

    async def _listen(self, candidate: Candidate[SttConnector], stream: SttStream) -> None:
        try:
            async for heard in stream.heard():
                if stream is self._stream:
                    self._on_heard(heard)
                elif self._hedge is not None and stream is self._hedge[1] and heard.final:
                    await self._adopt(heard)
        except Exception as error:
            failure = as_failure(error, candidate.name)
        else:
            failure = ConnectorError(f"{candidate.name}: the stream ended")
        if stream is self._stream and not self._closed:
            self.spawn(self._reopen(stream, failure))
        elif self._hedge is not None and stream is self._hedge[1]:
            self._hedge = None
            self.provider_failed(candidate, failure)

    def _on_heard(self, heard: Heard) -> None:
        if self._vad is None:
            self._on_provider_turn(heard)
        elif heard.final and self._finishing:
            utterance = self._finishing.popleft()
            if self._finishing:
                self._finishing[0].finished_ns = clock.monotonic_ns()
            self._deliver_final(utterance, heard.text)
        elif not heard.final and (speaking := self._finishing[0] if self._finishing else self._current) is not None:
            self._interim(speaking, heard.text)

    def _on_provider_turn(self, heard: Heard) -> None:
        """The provider finds the turns itself: its first word begins one, `ended` ends it."""
        frame = self._last_frame
        if frame is None or not (heard.text or heard.ended):
            return
        if self._current is None:
            self.begin_turn()
            self._turn += 1
            self._current = Utterance(self._turn)
            self._say_started(frame)
            if self._agent_busy and self.config.turns.interruptible:
                self._interrupt()
        if heard.ended:
            utterance, self._current = self._current, None
            utterance.audio_seq, utterance.audio_epoch, utterance.speech_end_ns = frame.seq, frame.epoch, frame.at_ns
            self._recent.clear()
            self._deliver_final(utterance, heard.text)
        else:
            self._interim(self._current, heard.text)
            self._likely(self._current, heard.text if heard.eager else "")

    def _likely(self, utterance: Utterance, text: str) -> None:
        if text != utterance.likely:
            utterance.likely = text
            self.say(TurnLikely(turn=utterance.turn, text=text))

    def _interim(self, utterance: Utterance, text: str) -> None:
        if text and utterance.text != text:
            utterance.text = text
            self.say(Transcript(turn=utterance.turn, text=text, final=False, provider=self._provider))

    def _deliver_final(self, utterance: Utterance, text: str) -> None:
        text = text.strip()
        self._tried.clear()
        metrics.TURNS.labels("stt", self._provider, "heard" if text else "empty").inc()
        if utterance.finished_ns:
            waited = (clock.monotonic_ns() - utterance.finished_ns) / 1e9
            metrics.FIRST_ITEM_SECONDS.labels("stt", self._provider).observe(waited)
        if text:
            self.say(Transcript(turn=utterance.turn, text=text, final=True, provider=self._provider))
            self._expect_answer(utterance.turn)
        self._turn_ended(utterance, text)

    def _turn_ended(self, utterance: Utterance, text: str) -> None:
        self.say(
            TurnEnded(
                turn=utterance.turn,
                text=text,
                audio_seq=utterance.audio_seq,
                speech_end_ns=utterance.speech_end_ns,
                audio_epoch=utterance.audio_epoch,
            )
        )
        utterance.done.set()
        used, self._used = self._used, Counter()
        self.tally(utterance.turn, {usage.recognised_ms(name): frames * FRAME_MS for name, frames in used.items()})
        self._prefer()

    # -- when it is late, or breaks -----------------------------------------------------------------------------------

    async def _wait_interim(self, utterance: Utterance, stream: SttStream, candidate: Candidate[SttConnector]) -> None:
        """A recogniser that says nothing while the caller speaks is dead, whatever its socket looks like."""
        limit_ms = candidate.deadlines.between_ms
        await asyncio.sleep(limit_ms / 1000)
        if utterance is self._current and not utterance.text and not self._paused:
            await self._reopen(
                stream, ProviderTimeout(f"{candidate.name}: nothing heard within {limit_ms} ms of voice")
            )

    async def _wait_final(self, utterance: Utterance) -> None:
        """Until the utterance is recognised: hedge, ask for patience, replace the recogniser, each when it is due."""
        began_ns = clock.monotonic_ns()
        hedge_ms = self.config.connectors.stt.hedge_ms
        notice_ms: int | None = None if self._candidate is None else self._candidate.deadlines.notice_ms
        while not utterance.done.is_set():
            passed_ms = (clock.monotonic_ns() - began_ns) // clock.MS
            if notice_ms is not None and passed_ms >= notice_ms:
                notice_ms = None
                self.say(StageLate(turn=utterance.turn, stage=self.stage))
            if hedge_ms is not None and passed_ms >= hedge_ms:
                hedge_ms = None
                self.spawn(self._start_hedge(utterance))
            left_ms = self._deadline_ms(utterance)
            if left_ms <= 0:
                limit_ms = self._candidate.deadlines.first_ms if self._candidate else 0
                late = ProviderTimeout(f"{self._provider}: no final transcript within {limit_ms} ms")
                await self._reopen(self._stream, late)
                continue
            waits = [left_ms, *(due - passed_ms for due in (notice_ms, hedge_ms) if due is not None)]
            try:
                async with asyncio.timeout(max(1, min(waits)) / 1000):
                    await utterance.done.wait()
            except TimeoutError:
                continue

    def _deadline_ms(self, utterance: Utterance) -> int:
        """How long the recogniser still has for the utterance, ms; one that waits for another to be heard has time."""
        if (
            self._candidate is None
            or self._stream is None
            or not self._finishing
            or self._finishing[0] is not utterance
        ):
            return 100
        return self._candidate.deadlines.first_ms - (clock.monotonic_ns() - utterance.finished_ns) // clock.MS

    async def _reopen(self, broken: SttStream | None = None, failure: MeshError | None = None) -> None:
        """The recogniser broke: the next provider hears again what is not yet recognised. None left: say so."""
        async with self._opening:
            if broken is not self._stream:
                return  # it has been replaced meanwhile
            if failure is not None and self._candidate is not None:
                self.provider_failed(self._candidate, as_failure(failure, self._provider, midway=True))
                self._tried.add(self._candidate.name)
            self._stream = self._candidate = None
            if broken is not None:
                self.spawn(broken.aclose())
            try:
                await self._open_first()
            except MeshError as error:
                await self._give_up(error)
            self._hear_again()

    async def _give_up(self, error: MeshError) -> None:
        """Nobody can recognise what was said: say so. The next turn tries again, from the primary."""
        self.log.warning("nobody_hears", code=error.code)
        failure = AllFailed("no recogniser understood you")
        while self._finishing:
            utterance = self._finishing.popleft()
            self.failed(utterance.turn, failure)
            self._turn_ended(utterance, "")
        self._tried.clear()
        self.spawn(self._try_again())

    async def _try_again(self) -> None:
        await asyncio.sleep(TRY_AGAIN_S)
        if self._stream is None:
            async with self._opening:
                if self._stream is None:
                    try:
                        await self._open_first()
                    except MeshError:
                        self._tried.clear()
                        return
                    self._hear_again()

    async def _start_hedge(self, utterance: Utterance) -> None:
        """Let the second provider hear a late utterance too."""
        others = [one for one in self._left() if one.name != self._provider]
        if not others or self._hedge is not None:
            return
        try:
            stream = await self._opened(others[0])
        except Exception as error:
            self.provider_failed(others[0], as_failure(error, others[0].name))
            return
        if utterance.done.is_set() or self._closed:
            await stream.aclose()
            return
        self._hedge = (others[0], stream)
        for pcm in utterance.pcm:
            stream.feed(pcm)
        stream.finish()
        self.spawn(self._listen(others[0], stream))
        await utterance.done.wait()
        if self._hedge is not None and self._hedge[1] is stream:
            self._hedge = None
            await stream.aclose()

    async def _adopt(self, heard: Heard) -> None:
        """The second provider was faster: it goes on, the first one is closed, and comes back at a quiet moment."""
        if self._hedge is None or not self._finishing:
            return
        slow = self._stream
        self._candidate, self._stream = self._hedge
        self._hedge = None
        self._on_heard(heard)
        if slow is not None:
            self.spawn(slow.aclose())
        self._hear_again()

    def _hear_again(self) -> None:
        if self._stream is None:
            return
        for pcm in self._recent:
            self._stream.feed(pcm)
        for utterance in self._finishing:
            for pcm in utterance.pcm:
                self._stream.feed(pcm)
            self._stream.finish()
            utterance.finished_ns = clock.monotonic_ns()
        if self._current is not None:
            for pcm in self._current.pcm:
                self._stream.feed(pcm)

    def reconfigured(self) -> None:
        self._endpointer.settings = _settings(self.config.turns)
        self._preroll = deque(self._preroll, maxlen=max(1, self.config.turns.preroll_ms // FRAME_MS))
        self._tried.clear()
        self._prefer(changed=True)

    def _on_switch(self, stage: str, provider: str) -> None:
        """A provider failed, healed or was switched: use another one from the next turn on, or at once."""
        if stage == self.stage and not self._closed:
            self._prefer(changed=provider == self._provider and self.host.breakers.state(stage, provider) == "off")

    def _prefer(self, *, changed: bool = False) -> None:
        """Go over to the provider that comes first, between turns; `changed`: now."""
        if self._opening.locked() or self._stream is None or not (self.quiet or changed):
            return
        asked = self._left()
        if asked and (asked[0].name != self._provider or asked[0].options != self._options):
            self.spawn(self._switch())

    @property
    def _options(self) -> Options | None:
        return None if self._candidate is None else self._candidate.options

    async def _switch(self) -> None:
        async with self._opening:
            old = self._stream
            try:
                await self._open_first()
            except MeshError as error:
                self.log.warning("switch_failed", code=error.code)
                return
            if old is not None:
                self.spawn(old.aclose())
            self._hear_again()

    async def finish(self) -> None:
        self._forget_switches()
        if self._hedge is not None:
            await self._hedge[1].aclose()
        if self._stream is not None:
            await self._stream.aclose()

    # -- takeover -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        done = (0, -1)
        began: dict[int, tuple[int, int]] = {}
        for frame in await self.journal.read(self._output_subject):
            self._turn = max(self._turn, frame.turn)
            if isinstance(frame, TurnEnded):
                done = max(done, (frame.audio_epoch, frame.audio_seq))
                began = {turn: place for turn, place in began.items() if turn > frame.turn}
                if frame.text:
                    self._expect_answer(frame.turn)
            elif isinstance(frame, VoiceStarted):
                began.setdefault(frame.turn, (frame.audio_epoch, frame.audio_seq))
        if began:
            self._turn = min(began) - 1
        for frame in await self._control.history():
            self.on_signal(frame)
        typed = await self.journal.last(subject_of("transport", "text", self.session))
        await self._hear_unfinished(done, began[min(began)] if began else None)
        self._turn = max(self._turn, typed.turn if typed else 0)  # what was typed after it keeps its number

    async def _hear_unfinished(self, done: tuple[int, int], began: tuple[int, int] | None) -> None:
        """Hear again the caller's audio after `done`, from where the unfinished turn `began`: epochs and numbers."""
        subject = subject_of("transport", "audio", self.session)
        inlet = self.inlet(subject)
        last = await self.journal.last(subject)
        if inlet is None:
            return
        inlet.start_after(*done)  # should nothing be left to hear: what is repeated after a reconnect is not new
        if last is None:
            return
        place = (last.epoch, last.seq) if began is None else began
        before = BEFORE_VOICE + (self.ownerless_ms // FRAME_MS if began is None else 0)  # nobody saw it begin
        start = place[1] - before if place[0] in (0, last.epoch) else 0
        if done[0] in (0, last.epoch):
            start = max(start, done[1] + 1)
        start = max(start, 0)
        frames = await self.journal.read(subject, newest=max(1, last.seq - start + 1))
        if start <= last.seq and all((frame.epoch, frame.seq) != (last.epoch, start) for frame in frames):
            frames = await self.journal.read(subject)  # it did not come at its pace: the caller was held up
        frames = [frame for frame in frames if frame.epoch == last.epoch and frame.seq >= start]
        if frames:
            inlet.start_after(frames[0].epoch, frames[0].seq - 1)
        else:
            inlet.start_after(last.epoch, last.seq)
        inlet.replay(frames)


def _settings(turns: Turns) -> TurnSettings:
    return TurnSettings(turns.start_ms, turns.end_silence_ms, turns.min_interrupt_ms, turns.interruptible)
