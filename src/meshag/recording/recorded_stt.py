"""The recogniser of a replay: recognises what was recognised."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from meshag import clock
from meshag.connectors.contracts import Heard, Options, SttConnector, SttStream
from meshag.errors import ConnectorError
from meshag.frames import StageFailed, Transcript, TurnEnded, TurnLikely, VoiceStarted
from meshag.recording.file import STT_OUTPUT
from meshag.recording.recorded import NOT_RECORDED, Recorded, never
from meshag.recording.tape import Tape
from meshag.recording.virtual import until

FAILED_FOR_NS = 500 * clock.MS
"""Nobody can be asked for so long after every recogniser had failed."""


@dataclass
class _Utterance:
    turn: int
    began_ns: int
    ended_ns: int
    text: str
    used: bool = False


class RecordedStt(Recorded, SttConnector):
    """Recognises what was recognised."""

    def __init__(self, name: str, tape: Tape, notice_ms: int, *, endpointing: bool, from_ns: int) -> None:
        super().__init__(name, tape, notice_ms)
        self._endpointing = endpointing
        self.utterances: dict[int, _Utterance] = {}
        failed = {frame.turn for _, frame in tape.of(StageFailed) if frame.stage == "stt"}
        self.failures_ns = [at for at, frame in tape.of(StageFailed) if frame.stage == "stt"]
        for at, started in tape.of(VoiceStarted):
            self.utterances.setdefault(started.turn, _Utterance(started.turn, at, 0, ""))
        for at, ended in tape.of(TurnEnded):
            known = self.utterances.get(ended.turn)
            if known is not None and ended.turn not in failed:
                known.ended_ns, known.text = at, ended.text
        self.left = [moment for moment in tape.moments if moment.kind == STT_OUTPUT and moment.at_ns >= from_ns]
        """What no stream has said yet."""

    @property
    def epoch(self) -> int:
        """Of the owner that opens a stream now; 0: nobody knows."""
        mine = [one for one in self._tape.owners if one.stage == "stt"]
        begun = [one.epoch for one in mine if one.at_ns <= clock.wall_ns()]
        return max(begun, default=min((one.epoch for one in mine), default=0))

    async def open(self, options: Options) -> SttStream:
        now_ns = clock.wall_ns()
        if any(at - clock.MS <= now_ns < at + FAILED_FOR_NS for at in self.failures_ns):
            raise ConnectorError(f"{self.name} failed")
        return _Stream(self, endpointing=self._endpointing)


class _Stream(SttStream):
    def __init__(self, source: RecordedStt, *, endpointing: bool) -> None:
        self.endpointing = endpointing
        self._source = source
        self._queue: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._fed = asyncio.Event()
        self._tasks = {asyncio.create_task(self._speak())}
        self._tasks |= {asyncio.create_task(self._fail(at)) for at in source.failures_ns if at >= clock.wall_ns()}

    def feed(self, pcm: bytes) -> None:
        self._fed.set()

    def reset(self) -> None:
        pass

    def finish(self) -> None:
        now_ns = clock.wall_ns()
        begun = [one for one in self._source.utterances.values() if one.began_ns <= now_ns]
        newest = max(begun, key=lambda one: one.began_ns, default=None)
        if newest is None or newest.used:
            self._queue.put_nowait(Heard(NOT_RECORDED, final=True))
            return
        newest.used = True
        self._tasks.add(asyncio.create_task(self._finish(newest)))

    async def _finish(self, utterance: _Utterance) -> None:
        if not utterance.ended_ns:
            await never()
        await until(utterance.ended_ns)
        self._queue.put_nowait(Heard(utterance.text, final=True))

    async def _fail(self, at_ns: int) -> None:
        await until(at_ns - clock.MS // 2)
        self._queue.put_nowait(None)

    async def _speak(self) -> None:
        """What this owner heard, also that which was stored before it was known to be the owner."""
        text, epoch = "", self._source.epoch
        await self._fed.wait()
        for moment in tuple(self._source.left):
            frame = moment.frame
            if epoch and frame.epoch != epoch:
                continue
            if isinstance(frame, Transcript) and not frame.final:
                text, heard = frame.text, Heard(frame.text, final=False)
            elif isinstance(frame, TurnLikely) and self.endpointing:
                text = frame.text or text
                heard = Heard(text, final=False, eager=bool(frame.text))
            elif isinstance(frame, TurnEnded) and self.endpointing:
                heard = Heard(frame.text, final=True, ended=True)
            else:
                continue
            await until(moment.at_ns)
            if moment in self._source.left:
                self._source.left.remove(moment)
                self._queue.put_nowait(heard)

    async def heard(self) -> AsyncIterator[Heard]:
        while (heard := await self._queue.get()) is not None:
            yield heard
        raise ConnectorError(f"{self._source.name} failed")

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
