"""Text to speech: reply chunks in, agent audio out.

on_frame   ReplyChunk or TextIn → the queue
_work      chunk after chunk: provider → Speech …, SpeechEnded
on_signal  Interrupt: silence
resume     the former owner is gone: go on after the last sample that it sent
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from meshag import clock
from meshag.connectors.contracts import TtsConnector, TtsVoice
from meshag.connectors.failover import Candidate, as_failure, candidates, connected, watched
from meshag.errors import ConnectorError, MeshError
from meshag.frames import AnyFrame, Interrupt, Played, ReplyChunk, ReplyEnded, Speech, SpeechEnded, TextIn, TurnEnded
from meshag.observe import metrics
from meshag.stages.owned import Owned
from meshag.turns.sentences import Chunker, speakable

LEAD_MS = 3_000
"""How far the audio sent may run ahead of the caller's ear: what is left to hear when this worker dies."""


@dataclass(frozen=True)
class Chunk:
    """A piece of text to be spoken; `text` None: the reply ends here, after `n` chunks."""

    turn: int
    n: int
    text: str | None
    skip: int = 0
    """Samples that a former owner has already sent."""


class TtsSession(Owned):
    """One session's voice."""

    stage = "tts"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._queue: deque[Chunk] = deque()
        self._wake = asyncio.Event()
        self._voices: dict[str, TtsVoice] = {}
        self._speaking: asyncio.Task[None] | None = None
        self._now: Chunk | None = None
        self._silenced = 0
        self._turn = 0
        self._heard_until_ns = 0

    @property
    def quiet(self) -> bool:
        return not self._queue and self._now is None

    async def warm(self) -> None:
        problem: MeshError = ConnectorError(
            "no tts provider of this session is available here", code="provider_unknown"
        )
        for candidate in self._candidates():
            try:
                await self._voice(candidate)
                break
            except Exception as error:
                problem = as_failure(error, candidate.name)
        else:
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
        if isinstance(frame, (TextIn, TurnEnded)) and frame.text:  # an announcement, or what the caller said, repeated
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
            self._turn = chunk.turn
            self.begin_turn()
        if chunk.text is None:
            await self.say_now(SpeechEnded(turn=chunk.turn, n=chunk.n, samples=0, last=True))
            return
        samples = await self._speak_chunk(chunk)
        await self.say_now(SpeechEnded(turn=chunk.turn, n=chunk.n, samples=samples, last=False))

    async def _speak_chunk(self, chunk: Chunk) -> int:
        """The chunk by the first provider that speaks all of it. A provider that breaks off is replaced from its start.

        Returns its length in samples. Playout drops what the caller has heard already.
        """
        text = speakable(chunk.text or "")
        if not text:
            return 0
        for candidate in self._candidates():
            try:
                samples = await self._say(chunk, text, candidate)
            except Exception as error:
                failure = as_failure(error, candidate.name)
                metrics.PROVIDER_FAILURES.labels("tts", candidate.name, failure.code).inc()
                self.log.warning("provider_failed", provider=candidate.name, code=failure.code, error=str(failure))
                self._voices.pop(candidate.name, None)
                continue
            metrics.TURNS.labels("tts", candidate.name, "spoken").inc()
            return samples
        self.failed(chunk.turn, MeshError("no voice could speak", code="all_providers_failed", retryable=True))
        return 0

    async def _say(self, chunk: Chunk, text: str, candidate: Candidate[TtsConnector]) -> int:
        voice = await self._voice(candidate)
        offset, started_ns = 0, clock.monotonic_ns()
        first_text = chunk.text if chunk.skip == 0 else ""
        async for pcm in watched(voice.speak(text), candidate.connector.deadlines, candidate.name):
            if offset == 0:
                waited = (clock.monotonic_ns() - started_ns) / 1e9
                metrics.FIRST_ITEM_SECONDS.labels("tts", candidate.name).observe(waited)
            samples = len(pcm) // 2
            if offset + samples > chunk.skip:
                await self._pace(samples, voice.rate_hz)
                frame = Speech(
                    turn=chunk.turn, n=chunk.n, offset=offset, rate_hz=voice.rate_hz, pcm=pcm, text=first_text or ""
                )
                await self.say_now(frame)
                first_text = ""
            offset += samples
        if offset == 0:
            raise ConnectorError(f"{candidate.name}: no audio", code="empty_audio")
        return offset

    async def _pace(self, samples: int, rate_hz: int) -> None:
        """Wait while the caller still has plenty to hear."""
        now = clock.monotonic_ns()
        ahead_ms = (self._heard_until_ns - now) / clock.MS
        if ahead_ms > LEAD_MS:
            await asyncio.sleep((ahead_ms - LEAD_MS) / 1000)
        self._heard_until_ns = max(self._heard_until_ns, now) + samples * 1_000_000_000 // rate_hz

    # -- voices -------------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Candidate[TtsConnector]]:
        chosen = self.config.connectors.tts
        names = [chosen.primary, *chosen.fallback]
        return candidates(self.host.registry, "tts", names, chosen.config, TtsConnector)  # type: ignore[type-abstract]

    async def _voice(self, candidate: Candidate[TtsConnector]) -> TtsVoice:
        voice = self._voices.get(candidate.name)
        if voice is None:
            opening = candidate.connector.open(candidate.options)
            opened: TtsVoice = await connected(opening, candidate.connector.deadlines, candidate.name)
            voice = self._voices[candidate.name] = opened
        return voice

    def reconfigured(self) -> None:
        self._voices.clear()

    async def finish(self) -> None:
        if self._speaking is not None:
            self._speaking.cancel()
        for voice in self._voices.values():
            await voice.aclose()

    # -- takeover -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        said = await self.journal.last(self._output_subject)
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
    if isinstance(said, SpeechEnded):
        return chunk if not said.last and chunk.n > said.n else None
    if chunk.n == said.n and chunk.text is not None:
        return Chunk(chunk.turn, chunk.n, chunk.text, skip=said.offset + len(said.pcm) // 2)
    return chunk if chunk.n > said.n else None
