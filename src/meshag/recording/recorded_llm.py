"""The model of a replay: writes what was written.

A chunk proves that the model had written all of it by then, and what follows it as far as the chunker had to see it:
so much is written with it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from meshag import clock
from meshag.connectors.contracts import LlmConnector, LlmEvent, LlmRequest, Options, ReplyDone, TextDelta, ToolCall
from meshag.errors import ConnectorError
from meshag.frames import (
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    StageFailed,
    TextIn,
    ToolAnswered,
    ToolCalled,
    TurnEnded,
    TurnLikely,
)
from meshag.recording.file import LLM_OUTPUT
from meshag.recording.recorded import GOES_ON_NS, NOT_RECORDED, Recorded, never
from meshag.recording.tape import Tape
from meshag.recording.virtual import until
from meshag.turns.sentences import FIRST_MAX_CHARS, MAX_CHARS

LATER = "x"
"""Stands for what a model wrote that nobody published: a letter cuts no sentence."""

CLOSERS = "\"'”’»)]}*_`」』）】 "
SENTENCE_ENDS = ".!?…。！？｡\n"
CLAUSE_ENDS = ",;:，；：、—–"


@dataclass
class _Segment:
    """What a model wrote between two batches of calls."""

    chunks: list[tuple[int, str, str]] = field(default_factory=list)
    """Time, text, whose."""
    calls: list[tuple[int, ToolCall]] = field(default_factory=list)
    calling: str = ""
    """Whose calls they are."""
    takes: list[tuple[int, int, str]] = field(default_factory=list)
    """When a provider began, after how many chunks, its name."""


@dataclass
class _Reply:
    segments: list[_Segment]
    ended_ns: int = 0
    reason: str = ""
    failed_ns: int = 0


class RecordedLlm(Recorded, LlmConnector):
    """Writes what was written."""

    tools = True

    def __init__(self, name: str, tape: Tape, notice_ms: int) -> None:
        super().__init__(name, tape, notice_ms)
        self._replies: dict[int, _Reply] = {}
        self._models = {frame.provider: frame.model for _, frame in tape.of(ReplyStarted)}
        answering = ""
        for moment in tape.moments:
            frame, at = moment.frame, moment.at_ns
            if moment.kind != LLM_OUTPUT:
                continue
            reply = self._replies.setdefault(frame.turn, _Reply([_Segment()]))
            segment = reply.segments[-1]
            if isinstance(frame, ReplyStarted) and frame.provider != "meshag":
                answering = frame.provider
                segment.takes.append((at, len(segment.chunks), answering))
            elif isinstance(frame, ReplyChunk) and not frame.filler:
                segment.chunks.append((at, frame.text, answering))
            elif isinstance(frame, ToolCalled):
                segment.calls.append((at, ToolCall(frame.id, frame.name, frame.arguments)))
                segment.calling = answering
            elif isinstance(frame, ToolAnswered):
                if segment.calls and frame.n + 1 >= sum(len(one.calls) for one in reply.segments):
                    reply.segments.append(_Segment())
            elif isinstance(frame, ReplyEnded):
                reply.ended_ns, reply.reason = at, frame.reason
            elif isinstance(frame, StageFailed):
                reply.failed_ns = at

    def model(self, options: Options) -> str:
        return self._models.get(self.name, self.name)

    def _turn(self) -> int:
        """Whose answer is asked for: that of the newest question."""
        now_ns, turn = clock.wall_ns(), 0
        for moment in self._tape.moments:
            if moment.at_ns > now_ns:
                break
            if isinstance(moment.frame, (TurnEnded, TextIn, TurnLikely)) and moment.frame.text.strip():
                turn = moment.frame.turn
        return turn

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        turn = self._turn()
        reply = self._replies.get(turn)
        if reply is None:
            await never()
        asked = max(at for at, message in enumerate(request.messages) if message.role == "user")
        batch = sum(1 for message in request.messages[asked:] if message.calls)
        if batch >= len(reply.segments):
            raise ConnectorError(f"{self.name}: {NOT_RECORDED}")
        segment = reply.segments[batch]
        number = _after(segment, request.said)
        whose = next((name for _, at, name in reversed(segment.takes) if at <= number), "")
        if whose != self.name:  # it was asked and did not answer
            if not segment.takes and reply.failed_ns:
                await until(reply.failed_ns - clock.MS // 2)
            elif not segment.takes and not reply.ended_ns:
                await never()
            raise ConnectorError(f"{self.name} did not answer")
        first = batch == 0 and number == 0
        for at, text, last in _deltas(segment, number, whose, first=first, done=_is_done(reply, batch)):
            await until(at)
            if text:
                yield TextDelta(text)
            if last == "broke off":
                raise ConnectorError(f"{self.name} broke off")
        if segment.calls:
            for at, call in segment.calls:
                await until(at)
                yield call
            yield ReplyDone("tools")
        elif reply.failed_ns:
            await until(reply.failed_ns - clock.MS // 2)
            raise ConnectorError(f"{self.name} broke off")
        elif reply.reason in ("stop", "length"):
            await until(reply.ended_ns)
            yield ReplyDone("length" if reply.reason == "length" else "stop")
        else:
            await until(self._tape.cut_ns(turn) + GOES_ON_NS)
            yield TextDelta(" And so on and so forth, and nobody hears it. " * 2)  # as a model would have gone on
            await never()


def _is_done(reply: _Reply, batch: int) -> bool:
    """Whether all that the model wrote in this segment was published: the chunker is flushed at the end only."""
    return bool(reply.segments[batch].calls) or reply.reason in ("stop", "length")


def _after(segment: _Segment, said: str) -> int:
    """How many chunks of the segment `said` holds."""
    number, length = 0, 0
    while number < len(segment.chunks) and length + len(segment.chunks[number][1]) <= len(said):
        length += len(segment.chunks[number][1])
        number += 1
    return number


def _deltas(segment: _Segment, start: int, whose: str, *, first: bool, done: bool) -> list[tuple[int, str, str]]:
    """What the model wrote and when: with each chunk as much of the following text as the chunker had seen by then.

    The last one may say `broke off`: another provider went on from there.
    """
    other = next(((at, n) for at, n, _ in segment.takes if n > start), None)
    end = other[1] if other else len(segment.chunks)
    text = "".join(chunk for _, chunk, _ in segment.chunks[start:end])
    if other or not done:  # what was written after the last chunk is not recorded
        text += LATER * (MAX_CHARS + 1)
    deltas, given, length = [], 0, 0
    for number in range(start, end):
        at, chunk, _ = segment.chunks[number]
        most = FIRST_MAX_CHARS if first and number == start else MAX_CHARS
        is_last = number == end - 1 and done and not other
        ends = SENTENCE_ENDS + CLAUSE_ENDS if first and number == start else SENTENCE_ENDS
        closed = chunk.endswith("\n") or chunk.rstrip(CLOSERS)[-1:] in ends  # else it was cut because it was too long
        seen = length + (len(chunk) + 1 if closed else most + 1)
        length += len(chunk)
        seen = length if is_last else max(length, seen)
        if seen > given:
            deltas.append((at, text[given:seen], ""))
            given = seen
    if other:
        deltas.append((other[0], "", "broke off"))
    return deltas
