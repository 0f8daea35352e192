"""Text to speech: reply chunks in, agent audio out.

on_frame   ReplyChunk or TextIn → the queue
_work      chunk after chunk: provider → Speech …, SpeechEnded
           a provider breaks off: the next one says the whole chunk, and what was not yet heard of the first is dropped
on_signal  Interrupt: silence
resume     the former owner is gone: go on after the last sample that it sent
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec

from meshag import clock
from meshag.connectors.contracts import TtsConnector, TtsVoice
from meshag.connectors.failover import (
    LEAST_MS_PER_S,
    AllFailed,
    BrokeOff,
    Candidate,
    as_failure,
    connected,
    relay,
)
from meshag.errors import ConnectorError, MeshError
from meshag.frames import (
    AnyFrame,
    Interrupt,
    Played,
    ReplyChunk,
    ReplyEnded,
    Say,
    Speech,
    SpeechEnded,
    TextIn,
    TurnEnded,
)
from meshag.observe import metrics
from meshag.sessions import usage
from meshag.sessions.config import hears
from meshag.stages.levels import AsItIs, Fit, Levels, Voice
from meshag.stages.owned import Owned
from meshag.stages.playout import LEAD_MS
from meshag.turns.sentences import Chunker, speakable


@dataclass(frozen=True)
class Chunk:
    """A piece of text to be spoken; `text` None: the reply ends here, after `n` chunks."""

    turn: int
    n: int
    text: str | None
    skip: int = 0
    """Samples that a former owner has already sent."""
    take: int = 0
    """How many voices have begun it before."""
    provider: str = ""
    """Whose voice the former owner's was in this turn."""


class TtsSession(Owned):
    """One session's voice."""

    stage = "tts"
    _levels = Levels()

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._queue: deque[Chunk] = deque()
        self._wake = asyncio.Event()
        self._voices: dict[str, TtsVoice] = {}
        self._speaking: asyncio.Task[None] | None = None
        self._now: Chunk | None = None
        self._silenced = 0
        self._turn = 0
        self._asked: list[Candidate[TtsConnector]] = []
        """Whose voices this turn may be spoken with, the present one first."""
        self._heard_until_ns = 0
        self._used: Counter[str] = Counter()
        """What this turn has cost."""

    @property
    def quiet(self) -> bool:
        return not self._queue and self._now is None

    async def warm(self) -> None:
        problem: MeshError = ConnectorError(
            "no tts provider of this session is available here", code="provider_unknown"
        )
        for candidate in self.able(TtsConnector):  # type: ignore[type-abstract]
            try:
                await self._voice(candidate)
                break
            except Exception as error:
                problem = as_failure(error, candidate.name)
                self.provider_failed(candidate, problem)
        else:
            if self.epoch == 1:
                raise problem
        self.spawn(self._work())

    # -- what is to be said -------------------------------------------------------------------------------------------

    def on_frame(self, frame: AnyFrame) -> None:
        for chunk in self._chunks(frame):
            if chunk.turn > self._silenced:
                self._queue.append(chunk)
                self._wake.set()

    def _chunks(self, frame: AnyFrame) -> list[Chunk]:
        if isinstance(frame, ReplyChunk):
            return [Chunk(frame.turn, frame.n, frame.text)]
        if isinstance(frame, ReplyEnded):
            return [Chunk(frame.turn, frame.chunks, None)]
        if isinstance(frame, Say) and hears(self.config, "tts", "llm"):
            return []  # it says it
        if isinstance(frame, (TextIn, TurnEnded, Say)) and frame.text:  # announced, or the caller's own words
            chunker = Chunker()
            texts = [*chunker.push(frame.text), *chunker.flush()]
            return [*(Chunk(frame.turn, n, text) for n, text in enumerate(texts)), Chunk(frame.turn, len(texts), None)]
        return []

    def on_signal(self, frame: AnyFrame) -> None:
        if isinstance(frame, Interrupt):
            self._silenced = max(self._silenced, frame.turn)
            self._queue = deque(chunk for chunk in self._queue if chunk.turn > self._silenced)
            if self._now is not None and self._now.turn <= self._silenced and self._speaking is not None:
                self._speaking.cancel()
            self._heard_until_ns = 0
            if self._turn <= self._silenced:
                self._count()

    def _count(self) -> None:
        used, self._used = self._used, Counter()
        self.tally(self._turn, used)

    # -- saying it ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            while self._queue:
                self._now = self._queue.popleft()
                self._speaking = asyncio.get_running_loop().create_task(self._do(self._now))
                try:
                    await asyncio.wait([self._speaking])
                except asyncio.CancelledError:
                    self._speaking.cancel()
                    raise
                if not self._speaking.cancelled() and (error := self._speaking.exception()) is not None:
                    self.log.error("chunk_failed", error=type(error).__name__, exc_info=error)
                self._now = None
            self._wake.clear()
            await self._wake.wait()

    async def _do(self, chunk: Chunk) -> None:
        if chunk.turn > self._turn:
            self._count()
            self._turn = chunk.turn
            self.begin_turn()
            self._asked = self.able(TtsConnector)  # type: ignore[type-abstract]
        if chunk.text is None:
            own_mb = self._own_mb()
            await self.say_now(SpeechEnded(turn=chunk.turn, n=chunk.n, samples=0, last=True, own_mb=own_mb))
            self._count()
            return
        samples = await self._speak_chunk(chunk)
        ended = SpeechEnded(
            turn=chunk.turn,
            n=chunk.n,
            samples=samples,
            last=False,
            provider=self._asked[0].name if samples else "",
            own_mb=self._own_mb(),
        )
        await self.say_now(ended)

    async def _speak_chunk(self, chunk: Chunk) -> int:
        """The chunk by the first voice that speaks all of it. One that breaks off is replaced from the chunk's start.

        The voice stays for the rest of the turn. Returns the chunk's length in samples; 0 where nobody could speak it:
        the caller is told so once, and the rest of the turn is left unsaid.
        """
        text = speakable(chunk.text or "")
        if not text or not self._asked:
            return 0
        if chunk.provider and chunk.provider != self._asked[0].name:  # as the former owner spoke, if that can be
            same = [one for one in self._asked if one.name == chunk.provider]
            self._asked = [*same, *(one for one in self._asked if one.name != chunk.provider)]
            if chunk.skip and not same:
                chunk = replace(chunk, skip=0, take=chunk.take + 1)
        while True:
            try:
                return await self._say(chunk, text)
            except BrokeOff as broke:
                self._asked = self._asked[self._asked.index(broke.candidate) + 1 :]
                chunk = replace(chunk, skip=0, take=chunk.take + 1)
            except AllFailed as error:
                self._asked = []
                self.failed(chunk.turn, error)
                return 0

    async def _say(self, chunk: Chunk, text: str) -> int:
        """Speak the chunk with the first voice that can. Raises BrokeOff or AllFailed."""
        offset, started_ns = 0, clock.monotonic_ns()
        first_text = chunk.text if chunk.skip == 0 else ""
        speaking: Candidate[TtsConnector] | None = None
        fit: Fit = AsItIs()
        source = relay(
            self._asked,
            lambda candidate: self._pieces(candidate, text),
            self._voice_failed,
            hedge_ms=self.config.connectors.tts.hedge_ms,
            weigh=lambda piece: len(piece[1]) * 500 / piece[0],
            least_per_s=LEAST_MS_PER_S,
        )
        async with aclosing(source):
            async for candidate, (rate_hz, pcm) in source:
                if speaking is None:
                    speaking = candidate
                    waited = (clock.monotonic_ns() - started_ns) / 1e9
                    metrics.FIRST_ITEM_SECONDS.labels("tts", candidate.name).observe(waited)
                    self._used[usage.characters(candidate.name)] += len(text)
                    if chunk.skip and candidate.name != chunk.provider:  # another voice: from the chunk's start
                        chunk = replace(chunk, skip=0, take=chunk.take + 1)
                    fit = self._fit(candidate, rate_hz)
                pcm = fit.push(pcm)
                samples = len(pcm) // 2
                if offset + samples > chunk.skip:
                    await self._pace(samples, rate_hz)
                    frame = Speech(
                        turn=chunk.turn,
                        n=chunk.n,
                        offset=offset,
                        rate_hz=rate_hz,
                        pcm=pcm,
                        text=first_text or "",
                        take=chunk.take,
                        provider=candidate.name,
                        own_mb=self._own_mb(),
                    )
                    await self.say_now(frame)
                    first_text = ""
                offset += samples
        fit.done()
        if speaking is not None:
            self._asked = self._asked[self._asked.index(speaking) :]
            metrics.TURNS.labels("tts", speaking.name, "spoken").inc()
        return offset

    def _fit(self, candidate: Candidate[TtsConnector], rate_hz: int) -> Fit:
        """What makes a fallback as loud as the session's own voice."""
        chosen = self.config.connectors.tts
        if not chosen.fallback:
            return AsItIs()
        return self._levels.fit(self._as_configured(candidate.name), self._as_configured(chosen.primary), rate_hz)

    def _as_configured(self, provider: str) -> Voice:
        return provider, msgspec.json.encode(self.config.connectors.tts.config.get(provider, {}))

    def _own_mb(self) -> int:
        """How loud the session's own voice is: in every frame, for who takes over and has never heard it."""
        level_db = self._levels.level_db(self._as_configured(self.config.connectors.tts.primary))
        return 0 if level_db is None else round(level_db * 100)

    async def _pieces(self, candidate: Candidate[TtsConnector], text: str) -> AsyncIterator[tuple[int, bytes]]:
        """A voice's sample rate and audio, piece by piece."""
        voice = await self._voice(candidate)
        async with aclosing(voice.speak(text)) as pieces:  # type: ignore[type-var]
            async for pcm in pieces:
                if pcm:
                    yield voice.rate_hz, pcm

    def _voice_failed(self, candidate: Candidate[TtsConnector], failure: MeshError) -> None:
        self.provider_failed(candidate, failure)
        voice = self._voices.pop(candidate.name, None)
        if voice is not None:
            self.spawn(voice.aclose())

    async def _pace(self, samples: int, rate_hz: int) -> None:
        """Wait while the caller still has plenty to hear."""
        now = clock.monotonic_ns()
        ahead_ms = (self._heard_until_ns - now) / clock.MS
        if ahead_ms > LEAD_MS:
            await asyncio.sleep((ahead_ms - LEAD_MS) / 1000)
        self._heard_until_ns = max(self._heard_until_ns, now) + samples * 1_000_000_000 // rate_hz

    # -- voices -------------------------------------------------------------------------------------------------------

    async def _voice(self, candidate: Candidate[TtsConnector]) -> TtsVoice:
        voice = self._voices.get(candidate.name)
        if voice is None:
            opening = candidate.connector.open(candidate.options)
            opened: TtsVoice = await connected(opening, candidate.deadlines, candidate.name)
            voice = self._voices[candidate.name] = opened
        return voice

    def reconfigured(self) -> None:
        for voice in self._voices.values():
            self.spawn(voice.aclose())
        self._voices.clear()

    async def finish(self) -> None:
        if self._speaking is not None:
            self._speaking.cancel()
        for voice in self._voices.values():
            await voice.aclose()

    # -- takeover -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        said = await self.journal.last(self._output_subject)
        if isinstance(said, (Speech, SpeechEnded)) and said.own_mb:
            self._levels.told(self._as_configured(self.config.connectors.tts.primary), said.own_mb / 100)
        over = 0
        for frame in await self._control.history():
            self.on_signal(frame)
            if isinstance(frame, Played):
                over = max(over, frame.turn)
        for subject, inlet in self._inlets.items():
            frames = await self.journal.read(subject)
            for frame in frames:
                for chunk in self._chunks(frame):
                    if chunk.turn > max(over, self._silenced) and (left := _left(chunk, said)):
                        self._queue.append(left)
            if frames:
                inlet.start_after(frames[-1].epoch, frames[-1].seq)
        self._wake.set()


def _left(chunk: Chunk, said: AnyFrame | None) -> Chunk | None:
    """What is left of `chunk` when `said` was the last thing sent: all, none, or what follows a sample."""
    if not isinstance(said, (Speech, SpeechEnded)) or chunk.turn > said.turn:
        return chunk
    if chunk.turn < said.turn:
        return None
    chunk = replace(chunk, provider=said.provider)
    if isinstance(said, SpeechEnded):
        return chunk if not said.last and chunk.n > said.n else None
    if chunk.n == said.n and chunk.text is not None:
        skip = said.offset + len(said.pcm) // 2
        return replace(chunk, skip=skip, take=said.take)
    return chunk if chunk.n > said.n else None
