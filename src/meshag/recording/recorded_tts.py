"""The voice of a replay: speaks what was spoken."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from meshag import clock
from meshag.connectors.contracts import Options, TtsConnector, TtsVoice
from meshag.errors import ConnectorError
from meshag.frames import ReplyChunk, Speech, SpeechEnded, StageFailed
from meshag.recording.file import TTS_OUTPUT
from meshag.recording.recorded import GOES_ON_NS, NOT_RECORDED, Recorded, never
from meshag.recording.tape import Tape
from meshag.recording.virtual import until
from meshag.turns.sentences import speakable


@dataclass
class _Take:
    provider: str
    rate_hz: int
    pieces: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """By offset in samples: time and audio."""


@dataclass
class _Spoken:
    turn: int
    n: int
    text: str
    begun_ns: int
    takes: dict[int, _Take] = field(default_factory=dict)
    ended_ns: int = 0
    done: bool = False


class Speeches:
    """All that was spoken, shared by the voices of a session."""

    def __init__(self, tape: Tape, from_ns: int) -> None:
        """`from_ns`: what was asked for before that is not asked for again."""
        self.tape = tape
        self.chunks: dict[tuple[int, int], _Spoken] = {}
        self.failed = {frame.turn: at for at, frame in tape.of(StageFailed) if frame.stage == "tts"}
        for at, asked in tape.of(ReplyChunk):
            self.chunks[asked.turn, asked.n] = _Spoken(asked.turn, asked.n, speakable(asked.text), at)
        for moment in tape.moments:
            frame, at = moment.frame, moment.at_ns
            if moment.kind != TTS_OUTPUT:
                continue
            if isinstance(frame, Speech):
                key = (frame.turn, frame.n)
                spoken = self.chunks.setdefault(key, _Spoken(frame.turn, frame.n, speakable(frame.text), 0))
                take = spoken.takes.setdefault(frame.take, _Take(frame.provider, frame.rate_hz))
                take.pieces.setdefault(frame.offset, (at, frame.pcm))
            elif isinstance(frame, SpeechEnded) and not frame.last and (frame.turn, frame.n) in self.chunks:
                self.chunks[frame.turn, frame.n].ended_ns = at
        for spoken in self.chunks.values():
            spoken.done = spoken.begun_ns < from_ns

    def rate_hz(self, provider: str) -> int:
        takes = (take for spoken in self.chunks.values() for take in spoken.takes.values())
        return next((take.rate_hz for take in takes if take.provider == provider), 24_000)

    def next(self, text: str) -> _Spoken | None:
        """What is asked for by this text now."""
        now_ns = clock.wall_ns()
        for _, spoken in sorted(self.chunks.items()):
            silenced = self.tape.silenced_ns(spoken.turn) < now_ns
            if not spoken.done and not silenced and spoken.text == text and spoken.begun_ns <= now_ns:
                return spoken
        return None


class RecordedTts(Recorded, TtsConnector):
    """Speaks what was spoken."""

    def __init__(self, name: str, tape: Tape, notice_ms: int, speeches: Speeches) -> None:
        super().__init__(name, tape, notice_ms)
        self._speeches = speeches

    async def open(self, options: Options) -> TtsVoice:
        return _Voice(self.name, self._speeches)


class _Voice(TtsVoice):
    def __init__(self, name: str, speeches: Speeches) -> None:
        self._name, self._speeches = name, speeches
        self.rate_hz = speeches.rate_hz(name)

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        spoken = self._speeches.next(text)
        if spoken is None:
            raise ConnectorError(f"{self._name}: {NOT_RECORDED}")
        now_ns = clock.wall_ns()
        mine = [number for number, take in sorted(spoken.takes.items()) if take.provider == self._name]
        left = [n for n in mine if max(at for at, _ in spoken.takes[n].pieces.values()) >= now_ns] or mine[-1:]
        if not left:
            if not spoken.takes and spoken.turn not in self._speeches.failed:
                await never()
            raise ConnectorError(f"{self._name} did not speak")
        take = spoken.takes[left[0]]
        offset = 0
        for start, (at, pcm) in sorted(take.pieces.items()):
            await until(at)
            if start > offset:
                yield bytes(2 * (start - offset))  # not recorded
            skip = max(0, offset - start)
            if pcm[2 * skip :]:
                yield pcm[2 * skip :]
            offset = max(offset, start + len(pcm) // 2)
        later = [n for n in spoken.takes if n > left[0]]
        if later:
            await until(min(at for at, _ in spoken.takes[min(later)].pieces.values()) - clock.MS)
            raise ConnectorError(f"{self._name} broke off")
        if not spoken.ended_ns:
            await until(self._speeches.tape.silenced_ns(spoken.turn) + GOES_ON_NS)
            yield bytes(2 * self.rate_hz)  # the voice would have gone on: who has fallen silent does not hear it
            await never()
        await until(spoken.ended_ns)
        spoken.done = True
