"""Speech to text: caller audio in; voice activity, transcripts and ends of turns out.

on_frame      a frame of caller audio → voice activity → endpointer → _on_event
_on_event     voice began: VoiceStarted · agent interrupted: Interrupt · turn over: recogniser, finish
_listen       what the recogniser hears: Transcript (interim), Transcript (final) and TurnEnded
resume        the former owner is gone: hear its unfinished turn again from the journal
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from meshag import clock
from meshag.audio import FRAME_MS
from meshag.connectors.contracts import Heard, SttConnector, SttStream
from meshag.connectors.failover import Candidate, as_failure, candidates, connected
from meshag.errors import ConfigError, ConnectorError, MeshError, ModelError, ProviderTimeout
from meshag.frames import AnyFrame, AudioIn, Interrupt, Played, TextIn, Transcript, TurnEnded, VoiceStarted
from meshag.models.catalogue import find
from meshag.models.store import path
from meshag.observe import metrics
from meshag.sessions.config import Turns, stages_of
from meshag.settings import Settings
from meshag.stages.owned import Owned, subject_of
from meshag.subjects import Stage
from meshag.turns.endpointing import BargeIn, Endpointer, FalseStart, TurnEnd, TurnEvent, TurnSettings, VoiceStart
from meshag.turns.vad import WINDOW_MS, SileroModel, SileroVad

BEFORE_VOICE = 50
"""Frames that a takeover hears before the voice began, so that its detector has settled: one second."""

RECENT = 60_000 // FRAME_MS
"""Frames that another provider hears again where the providers find the turns."""

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
        self._provider = ""
        self._listener: asyncio.Task[None] | None = None
        self._last_frame: AudioIn | None = None
        self._recent: deque[bytes] = deque(maxlen=RECENT)
        """Where the provider finds the turns: what it may still be making one of."""

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
        await self._open_stream(skip=0)
        self.spawn(self._watch_finals())

    @classmethod
    def _silero_model(cls) -> SileroModel:
        if SttSession._silero is None:
            SttSession._silero = SileroModel(path(find("silero-vad"), Settings().cache_dir))
        return SttSession._silero

    # -- caller audio -------------------------------------------------------------------------------------------------

    def on_frame(self, frame: AnyFrame) -> None:
        if isinstance(frame, TextIn):
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
        elif isinstance(event, TurnEnd):
            silence_ms = self._endpointer.now_ms - event.speech_end_ms
            self._turn_over(frame, frame.at_ns - silence_ms * clock.MS)

    def _voice_started(self, frame: AudioIn) -> None:
        self.begin_turn()
        self._turn += 1
        self._current = Utterance(self._turn)
        self._say_started(frame)
        for pcm in self._preroll:
            self._feed(self._current, pcm)
        self._preroll.clear()

    def _feed(self, utterance: Utterance, pcm: bytes) -> None:
        utterance.pcm.append(pcm)
        if self._stream is not None:
            self._stream.feed(pcm)

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
            self.spawn(self._reopen(ConnectorError("no recogniser is open")))

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

    def _candidates(self) -> list[Candidate[SttConnector]]:
        chosen = self.config.connectors.stt
        names = [chosen.primary, *chosen.fallback]
        return candidates(self.host.registry, "stt", names, chosen.config, SttConnector)  # type: ignore[type-abstract]

    async def _open_stream(self, skip: int) -> None:
        """Open the first provider that works, from candidate number `skip` on. Raises MeshError when none does."""
        problem: MeshError = ConfigError("no stt provider of this session is available here", code="provider_unknown")
        for candidate in self._candidates()[skip:]:
            try:
                self._stream = await connected(
                    candidate.connector.open(candidate.options), candidate.connector.deadlines, candidate.name
                )
            except (ConnectorError, ModelError) as error:
                problem = error
                metrics.PROVIDER_FAILURES.labels("stt", candidate.name, error.code).inc()
                continue
            self._provider = candidate.name
            if self._vad is None and not self._stream.endpointing:
                await self._stream.aclose()
                raise ConfigError(
                    f"turns.vad is 'provider', but '{candidate.name}' does not find the ends of turns",
                    path="config.turns.vad",
                    fix="set it to 'silero'",
                )
            self._listener = self.spawn(self._listen(self._stream))
            return
        self._stream = None
        raise problem

    async def _listen(self, stream: SttStream) -> None:
        try:
            async for heard in stream.heard():
                self._on_heard(heard)
        except Exception as error:
            failure = as_failure(error, self._provider)
        else:
            failure = ConnectorError(f"{self._provider}: the stream ended")
        if stream is self._stream:
            self.spawn(self._reopen(failure))

    def _on_heard(self, heard: Heard) -> None:
        if self._vad is None:
            self._on_provider_turn(heard)
        elif heard.final and self._finishing:
            self._deliver_final(self._finishing.popleft(), heard.text)
        elif not heard.final and (utterance := self._finishing[0] if self._finishing else self._current) is not None:
            self._interim(utterance, heard.text)

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

    def _interim(self, utterance: Utterance, text: str) -> None:
        if text and utterance.text != text:
            utterance.text = text
            self.say(Transcript(turn=utterance.turn, text=text, final=False, provider=self._provider))

    def _deliver_final(self, utterance: Utterance, text: str) -> None:
        text = text.strip()
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

    async def _watch_finals(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            if not self._finishing:
                continue
            limit_ms = self._limit_ms()
            if clock.monotonic_ns() - self._finishing[0].finished_ns > limit_ms * clock.MS:
                await self._reopen(ProviderTimeout(f"{self._provider}: no final transcript within {limit_ms} ms"))

    def _limit_ms(self) -> int:
        for candidate in self._candidates():
            if candidate.name == self._provider:
                return candidate.connector.deadlines.first_ms
        return SttConnector.deadlines.first_ms

    async def _reopen(self, failure: MeshError) -> None:
        """The recogniser broke: the next provider hears again what is not yet recognised. None left: say so."""
        metrics.PROVIDER_FAILURES.labels("stt", self._provider, failure.code).inc()
        self.log.warning("provider_failed", provider=self._provider, code=failure.code, error=str(failure))
        broken, self._stream = self._stream, None
        names = [candidate.name for candidate in self._candidates()]
        skip = names.index(self._provider) + 1 if self._provider in names else 0
        if broken is not None:
            await broken.aclose()
        try:
            await self._open_stream(skip)
        except MeshError as error:
            self._provider = ""
            for utterance in self._finishing:
                self.failed(utterance.turn, error)
                self._turn_ended(utterance, "")
            self._finishing.clear()
            await asyncio.sleep(1)
            try:
                await self._open_stream(0)  # the next turn tries again, from the primary
            except MeshError:
                return
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
        names = [candidate.name for candidate in self._candidates()]
        if names and names[0] != self._provider:
            self.spawn(self._switch())

    async def _switch(self) -> None:
        old = self._stream
        await self._open_stream(0)
        if old is not None:
            await old.aclose()
        self._hear_again()

    async def finish(self) -> None:
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
        await self._hear_unfinished(done, began[min(began)] if began else None)

    async def _hear_unfinished(self, done: tuple[int, int], began: tuple[int, int] | None) -> None:
        """Hear again the caller's audio after `done`, from where the unfinished turn `began`: epochs and numbers."""
        subject = subject_of("transport", "audio", self.session)
        inlet = self.inlet(subject)
        last = await self.journal.last(subject)
        if inlet is None or last is None:
            return
        place = (last.epoch, last.seq) if began is None else began
        start = place[1] - BEFORE_VOICE if place[0] in (0, last.epoch) else 0
        if done[0] in (0, last.epoch):
            start = max(start, done[1] + 1)
        start = max(start, 0)
        frames = await self.journal.read(subject, newest=max(1, last.seq - start + 1))
        frames = [frame for frame in frames if frame.epoch == last.epoch and frame.seq >= start]
        if frames:
            inlet.start_after(frames[0].epoch, frames[0].seq - 1)
        inlet.replay(frames)


def _settings(turns: Turns) -> TurnSettings:
    return TurnSettings(turns.start_ms, turns.end_silence_ms, turns.min_interrupt_ms, turns.interruptible)
