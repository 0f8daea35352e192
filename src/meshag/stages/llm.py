"""Language model: ends of turns and typed text in, a reply in speakable chunks out.

on_frame   TurnEnded or TextIn → _answer
_answer    history + prompt → provider → ReplyStarted, ReplyChunk …, ReplyEnded
on_signal  Interrupt: stop · Played: the history keeps what was heard
resume     the former owner is gone: go on after the last chunk that it said
"""

import asyncio
from dataclasses import dataclass, field

from meshag import clock
from meshag.connectors.contracts import LlmConnector, LlmRequest, Message, ReplyDone, TextDelta
from meshag.connectors.failover import APOLOGY, APOLOGY_UNHEARD, Candidate, as_failure, candidates, watched
from meshag.errors import ConnectorError, MeshError, StoreError, WireError
from meshag.frames import (
    AnyFrame,
    Interrupt,
    Played,
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    StageFailed,
    TextIn,
    TurnEnded,
)
from meshag.observe import metrics
from meshag.stages.owned import Owned, subject_of
from meshag.subjects import Stage
from meshag.turns.history import Exchange, History, decode, encode, heard
from meshag.turns.sentences import Chunker

HISTORY_CHARS = 24_000
"""How much of the conversation a model is told, characters."""

REPLY_CHARS = 4_000
"""A longer reply is cut: nobody listens to it, and a provider may never stop."""

SAME_UTTERANCE_MS = 1_000
"""Two reports of a turn whose speech ends are closer than this are of the same utterance."""

STORE_AGAIN_S = 1.0
"""Between two attempts to write what was said."""


@dataclass
class Reply:
    """A reply on its way: not in the history until the caller has heard it."""

    turn: int
    user: str
    chunks: list[str] = field(default_factory=list)
    ended: bool = False

    @property
    def text(self) -> str:
        """What has been published of it."""
        return "".join(self.chunks)


class LlmSession(Owned):
    """One session's mind."""

    stage = "llm"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._history = History()
        self._replies: dict[int, Reply] = {}
        self._answered: set[tuple[str, int, int]] = set()
        self._speech_ends_ns: dict[int, int] = {}
        self._unstored: dict[int, Exchange] = {}
        self._last_turn = 0
        self._work: asyncio.Task[None] | None = None

    @property
    def quiet(self) -> bool:
        return self._work is None or self._work.done()

    def extra_subjects(self) -> dict[str, Stage]:
        return {subject_of("transport", "text", self.session): "transport"}

    async def warm(self) -> None:
        if not self._candidates():
            raise ConnectorError("no llm provider of this session is available here", code="provider_unknown")
        try:
            stored = await self.host.store.history(self.session)
        except StoreError as error:
            self.log.warning("history_unread", error=str(error))
            return
        for data in stored:
            try:
                self._history.append(decode(data))
            except WireError as error:
                self.log.warning("exchange_unread", error=str(error))

    # -- turns --------------------------------------------------------------------------------------------------------

    def on_frame(self, frame: AnyFrame) -> None:
        if isinstance(frame, (TurnEnded, TextIn)) and frame.text.strip():
            self._begin(frame)
        elif isinstance(frame, StageFailed):
            self._apologise(frame.turn, APOLOGY_UNHEARD)

    def _begin(self, frame: TurnEnded | TextIn) -> None:
        asked = (type(frame).__name__, frame.epoch, frame.seq)
        if asked in self._answered or self._is_repeated(frame):
            return
        self._answered.add(asked)
        self._stop("interrupted")
        self.begin_turn()
        turn = frame.turn if frame.turn > self._last_turn else self._last_turn + 1
        self._last_turn = turn
        reply = self._replies[turn] = Reply(turn, frame.text)
        self._settle(before=turn)
        self._work = self.spawn(self._answer(reply))

    def _is_repeated(self, frame: TurnEnded | TextIn) -> bool:
        """Whether two owners of stt have heard the same utterance, as may happen when one hands over to the other."""
        if not isinstance(frame, TurnEnded):
            return False
        before_ns = self._speech_ends_ns.get(frame.turn)
        self._speech_ends_ns[frame.turn] = frame.speech_end_ns
        return before_ns is not None and abs(frame.speech_end_ns - before_ns) < SAME_UTTERANCE_MS * clock.MS

    def on_signal(self, frame: AnyFrame) -> None:
        if isinstance(frame, Interrupt):
            if self._last_turn <= frame.turn:
                self._stop("interrupted")
        elif isinstance(frame, Played) and (reply := self._replies.get(frame.turn)) is not None:
            text = heard(reply.chunks, frame.n, frame.ms, frame.chunk_ms) if frame.interrupted else reply.text
            self._commit(reply, text, interrupted=frame.interrupted)

    def _stop(self, reason: str) -> None:
        """Stop the reply on its way, if there is one."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            reply = self._replies.get(self._last_turn)
            if reply is not None and not reply.ended:
                reply.ended = True
                self.say(ReplyEnded(turn=reply.turn, chunks=len(reply.chunks), reason=reason))

    # -- history ------------------------------------------------------------------------------------------------------

    def _commit(self, reply: Reply, text: str, *, interrupted: bool) -> None:
        exchange = Exchange(reply.turn, reply.user, text, interrupted, clock.wall_ns())
        self._history.append(exchange)
        del self._replies[reply.turn]
        self._unstored[exchange.turn] = exchange
        if len(self._unstored) == 1:
            self.spawn(self._store())

    async def _store(self) -> None:
        """Write what has been committed, and keep trying while Valkey does not take it."""
        while self._unstored:
            turn, exchange = next(iter(self._unstored.items()))
            try:
                await self.host.store.remember(self.session, turn, encode(exchange), self.record.ttl_s)
            except StoreError as error:
                self.log.warning("history_unwritten", turn=turn, error=str(error))
                await asyncio.sleep(STORE_AGAIN_S)
                continue
            if self._unstored[turn] is exchange:
                del self._unstored[turn]

    async def restore(self) -> None:
        for exchange in self._history.exchanges:
            await self.host.store.remember(self.session, exchange.turn, encode(exchange), self.record.ttl_s)

    def _settle(self, before: int) -> None:
        """Replies of earlier turns whose playing nobody has reported: the transport that played them is gone."""
        for reply in [reply for turn, reply in self._replies.items() if turn < before]:
            self._commit(reply, reply.text, interrupted=not reply.ended)

    # -- the reply ----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Candidate[LlmConnector]]:
        chosen = self.config.connectors.llm
        names = [chosen.primary, *chosen.fallback]
        return candidates(self.host.registry, "llm", names, chosen.config, LlmConnector)  # type: ignore[type-abstract]

    def _request(self, reply: Reply, candidate: Candidate[LlmConnector]) -> LlmRequest:
        told = History([*self._history.exchanges, Exchange(reply.turn, reply.user)]).messages(HISTORY_CHARS)
        messages = [Message(role, text) for role, text in told]
        return LlmRequest(self.config.system_prompt, messages, candidate.options, said=reply.text)

    async def _answer(self, reply: Reply) -> None:
        """Stream the reply from the first provider that gives one; each goes on where the one before it stopped."""
        for candidate in self._candidates():
            model = candidate.connector.model(candidate.options)
            self.say(ReplyStarted(turn=reply.turn, provider=candidate.name, model=model))
            try:
                reason = await self._stream(reply, candidate)
            except Exception as error:
                failure = as_failure(error, candidate.name)
                metrics.PROVIDER_FAILURES.labels("llm", candidate.name, failure.code).inc()
                self.log.warning("provider_failed", provider=candidate.name, code=failure.code, error=str(failure))
                continue
            if reply.chunks:
                metrics.TURNS.labels("llm", candidate.name, "answered").inc()
                self._end(reply, reason)
                return
            self.log.warning("provider_failed", provider=candidate.name, code="empty_reply")
        self.failed(reply.turn, MeshError("no language model answered", code="all_providers_failed", retryable=True))
        if not reply.chunks:
            self._chunk(reply, APOLOGY)
        self._end(reply, "failed")

    async def _stream(self, reply: Reply, candidate: Candidate[LlmConnector]) -> str:
        chunker, reason = Chunker(first=not reply.chunks), "stop"
        started_ns, first, chars = clock.monotonic_ns(), True, len(reply.text)
        events = candidate.connector.reply(self._request(reply, candidate))
        async for event in watched(events, candidate.connector.deadlines, candidate.name):
            if first:
                first = False
                waited = (clock.monotonic_ns() - started_ns) / 1e9
                metrics.FIRST_ITEM_SECONDS.labels("llm", candidate.name).observe(waited)
            if isinstance(event, ReplyDone):
                reason = event.reason
                break
            if not isinstance(event, TextDelta):
                continue
            chars += len(event.text)
            for chunk in chunker.push(event.text):
                self._chunk(reply, chunk)
            if chars > REPLY_CHARS:
                reason = "length"
                break
        for chunk in chunker.flush():
            self._chunk(reply, chunk)
        return reason

    def _chunk(self, reply: Reply, text: str) -> None:
        self.say(ReplyChunk(turn=reply.turn, n=len(reply.chunks), text=text))
        reply.chunks.append(text)

    def _end(self, reply: Reply, reason: str) -> None:
        reply.ended = True
        self.say(ReplyEnded(turn=reply.turn, chunks=len(reply.chunks), reason=reason))

    def _apologise(self, turn: int, text: str) -> None:
        """Those before us could not do their part: tell the caller so, in words."""
        if turn <= self._last_turn:
            return
        self._stop("interrupted")
        self._last_turn = turn
        reply = self._replies[turn] = Reply(turn, "")
        self.say(ReplyStarted(turn=turn, provider="meshag", model="apology"))
        self._chunk(reply, text)
        self._end(reply, "failed")

    # -- takeover -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        committed = {exchange.turn for exchange in self._history.exchanges}
        asked: dict[int, TurnEnded | TextIn] = {}
        for subject, inlet in self._inlets.items():
            frames = await self.journal.read(subject)
            for frame in frames:
                if isinstance(frame, (TurnEnded, TextIn)) and frame.text.strip():
                    self._answered.add((type(frame).__name__, frame.epoch, frame.seq))
                    self._is_repeated(frame)
                    asked[frame.turn] = frame
            if frames:
                inlet.start_after(frames[-1].epoch, frames[-1].seq)
        for frame in await self.journal.read(self._output_subject):
            self._recall(frame, asked)
        for turn, question in asked.items():
            if turn not in committed:
                self._replies.setdefault(turn, Reply(turn, question.text))
        self._replies = {turn: reply for turn, reply in self._replies.items() if turn not in committed}
        self._last_turn = max([*asked, *committed, *self._replies, 0])
        unfinished = self._replies.get(self._last_turn)
        for frame in await self._control.history():
            if isinstance(frame, Interrupt) and unfinished is not None and frame.turn >= unfinished.turn:
                unfinished.ended = True
            self.on_signal(frame)
        if unfinished is not None and not unfinished.ended and unfinished.turn in self._replies:
            self._work = self.spawn(self._answer(unfinished))

    def _recall(self, frame: AnyFrame, asked: dict[int, TurnEnded | TextIn]) -> None:
        question = asked.get(frame.turn)
        reply = self._replies.setdefault(frame.turn, Reply(frame.turn, question.text if question else ""))
        if isinstance(frame, ReplyChunk) and frame.n == len(reply.chunks):
            reply.chunks.append(frame.text)
        elif isinstance(frame, ReplyEnded):
            reply.ended = True
