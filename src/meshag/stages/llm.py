"""Language model: ends of turns and typed text in, a reply in speakable chunks out.

on_frame   TurnEnded or TextIn → _answer · TurnLikely: begin a draft of the answer, unheard · Say → _recite
_answer    history + prompt + tools → provider → ReplyStarted, ReplyChunk …, ReplyEnded
           a provider breaks off: the next one goes on after what was said · the model calls a function: _call_tools
on_signal  Interrupt: stop · Played: the history keeps what was heard
resume     the former owner is gone: go on after the last chunk that it said
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from meshag import clock
from meshag.connectors.contracts import (
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Message,
    ReplyDone,
    TextDelta,
    Thinking,
    Tool,
    ToolCall,
)
from meshag.connectors.failover import (
    APOLOGY,
    APOLOGY_UNHEARD,
    LEAST_CHARS_PER_S,
    NOTICE,
    AllFailed,
    BrokeOff,
    Candidate,
    relay,
    weight,
)
from meshag.errors import ConnectorError, ProviderGarbage, StoreError, WireError
from meshag.frames import (
    AnyFrame,
    Interrupt,
    Played,
    PlayStarted,
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    Say,
    StageFailed,
    StageLate,
    TextIn,
    ToolAnswered,
    ToolCalled,
    TurnEnded,
    TurnLikely,
    VoiceStarted,
)
from meshag.observe import metrics
from meshag.sessions import schemas, usage
from meshag.sessions.config import ToolConfig
from meshag.stages.draft import Draft
from meshag.stages.owned import Owned, subject_of
from meshag.subjects import Stage
from meshag.turns.continuation import Continuation
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


Question = TurnEnded | TextIn | Say
"""What a turn of the agent's answers; a Say holds its answer itself."""


@dataclass
class Step:
    """A function that the model has called in a reply."""

    n: int
    batch: int
    chunks: int
    """How many chunks the reply had before it."""
    call: ToolCall
    answer: str | None = None


@dataclass
class Reply:
    """A reply on its way: not in the history until the caller has heard it."""

    turn: int
    user: str
    chunks: list[str] = field(default_factory=list)
    """All that was published of it, what bridges a wait included."""
    fillers: set[int] = field(default_factory=set)
    """The chunks that only bridge a wait."""
    steps: list[Step] = field(default_factory=list)
    draft: Draft | None = None
    """Its beginning, made before the turn's end was certain."""
    ended: bool = False
    given: str = ""
    """What it is to be, where that was said: no model is asked."""
    user_start_ns: int = 0
    user_end_ns: int = 0
    reply_start_ns: int = 0
    used: Counter[str] = field(default_factory=Counter)
    """What it has cost, see `sessions/usage.py`."""

    def texts(self, start: int = 0, end: int | None = None) -> list[str]:
        """The text of each chunk, fillers empty."""
        chunks = list(enumerate(self.chunks))[start:end]
        return ["" if n in self.fillers else text for n, text in chunks]

    @property
    def text(self) -> str:
        """What has been published of the reply itself."""
        return "".join(self.texts())

    @property
    def said(self) -> str:
        """What the model has said since it last called a function."""
        return "".join(self.texts(self.steps[-1].chunks if self.steps else 0))


class LlmSession(Owned):
    """One session's mind."""

    stage = "llm"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._history = History()
        self._replies: dict[int, Reply] = {}
        self._settled: dict[int, Reply] = {}
        """Replies that are in the history as if they had been heard, until somebody says how much was."""
        self._early: set[int] = set()
        """Turns that a former owner has begun to answer, whose questions have yet to be heard."""
        self._answered: set[tuple[str, int, int]] = set()
        self._speech_ends_ns: dict[int, int] = {}
        self._voices_ns: dict[int, int] = {}
        """When the caller began to speak, by turn."""
        self._unstored: dict[int, Exchange] = {}
        self._last_turn = 0
        self._work: asyncio.Task[None] | None = None
        self._draft: Draft | None = None

    @property
    def quiet(self) -> bool:
        return self._work is None or self._work.done()

    def extra_subjects(self) -> dict[str, Stage]:
        return {subject_of("transport", "text", self.session): "transport"}

    async def warm(self) -> None:
        if not self.able(LlmConnector):  # type: ignore[type-abstract]
            raise ConnectorError("no llm provider of this session is available here", code="provider_unknown")
        if self.config.tools:
            await asyncio.to_thread(schemas.prepare)
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
        if isinstance(frame, TurnLikely):
            self._begin_draft(frame)
        elif isinstance(frame, Question) and frame.text.strip():
            self._begin(frame)
        elif isinstance(frame, VoiceStarted):
            self._voices_ns[frame.turn] = frame.at_ns
        elif isinstance(frame, StageFailed):
            self._apologise(frame.turn, APOLOGY_UNHEARD)
        elif isinstance(frame, StageLate):
            self._ask_patience(self._replies.setdefault(frame.turn, Reply(frame.turn, "")))
        elif isinstance(frame, TurnEnded) and (reply := self._replies.get(frame.turn)) is not None and not reply.ended:
            self._end(reply, "stop")  # patience was asked for nothing

    def _begin(self, frame: Question) -> None:
        asked = (type(frame).__name__, frame.epoch, frame.seq)
        if asked in self._answered or self._is_repeated(frame):
            return
        self._answered.add(asked)
        early = frame.turn in self._early
        self._early.discard(frame.turn)
        if early and (known := self._replies.get(frame.turn)) is not None and known.ended:
            self._ask(known, frame)
            return
        self._stop("interrupted")
        self.begin_turn()
        turn = frame.turn if early or frame.turn > self._last_turn else self._last_turn + 1
        self._last_turn = max(turn, self._last_turn)
        reply = self._replies.setdefault(turn, Reply(turn, ""))
        self._ask(reply, frame)
        self._settle(before=turn)
        reply.draft = self._take_draft(reply.user)
        self._work = self.spawn(self._answer(reply))

    def _ask(self, reply: Reply, frame: Question) -> None:
        """Note what the reply answers, and when that was said."""
        if isinstance(frame, Say):
            reply.given = frame.text
            return
        reply.user = frame.text
        spoken = isinstance(frame, TurnEnded)
        reply.user_end_ns = frame.speech_end_ns if isinstance(frame, TurnEnded) else frame.at_ns
        reply.user_start_ns = self._voices_ns.get(frame.turn, 0) if spoken else frame.at_ns
        self._voices_ns = {turn: at_ns for turn, at_ns in self._voices_ns.items() if turn > frame.turn}

    # -- before the turn's end is certain -----------------------------------------------------------------------------

    def _begin_draft(self, frame: TurnLikely) -> None:
        """Begin to answer what the caller has probably said; with no text: the caller goes on."""
        if self._draft is not None and self._draft.answers(frame.text):
            return
        self._drop_draft()
        asked = self.able(LlmConnector)  # type: ignore[type-abstract]
        if not frame.text.strip() or not asked or not self.quiet or self._replies:
            return  # while an answer is being heard, nobody knows what the history will hold of it
        reply = Reply(frame.turn, frame.text)
        self._draft = Draft(frame.text, self.record.version, asked[0], self._events(reply, asked[0]))

    def _take_draft(self, text: str) -> Draft | None:
        """The draft, if the caller has indeed said this and nothing has changed since."""
        draft = self._draft
        if draft is None:
            return None
        asked = self.able(LlmConnector)  # type: ignore[type-abstract]
        if not draft.suits(text, self.record.version, asked[0] if asked else None):
            self._drop_draft()
            return None
        self._draft = None
        metrics.DRAFTS.labels("used").inc()
        return draft

    def _drop_draft(self) -> None:
        if self._draft is not None:
            metrics.DRAFTS.labels("dropped").inc()
            self.spawn(self._draft.aclose())
            self._draft = None

    def _begun(self, reply: Reply, candidate: Candidate[LlmConnector]) -> AsyncGenerator[LlmEvent, None]:
        """A provider's events; those of the draft, if it has one: it is the first provider's."""
        draft, reply.draft = reply.draft, None
        return self._events(reply, candidate) if draft is None else draft.events()

    async def finish(self) -> None:
        if self._draft is not None:
            await self._draft.aclose()

    def _is_repeated(self, frame: Question) -> bool:
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
        elif isinstance(frame, PlayStarted) and (reply := self._replies.get(frame.turn)) is not None:
            reply.reply_start_ns = frame.at_ns
        elif isinstance(frame, Played) and (reply := self._reply_of(frame.turn)) is not None:
            text = heard(reply.texts(), frame.n, frame.ms, frame.chunk_ms) if frame.interrupted else reply.text
            self._commit(reply, text, interrupted=frame.interrupted, end_ns=frame.at_ns)

    def _stop(self, reason: str) -> None:
        """Stop the reply on its way, if there is one."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            reply = self._replies.get(self._last_turn)
            if reply is not None and not reply.ended:
                self._end(reply, reason)

    # -- history ------------------------------------------------------------------------------------------------------

    def _commit(self, reply: Reply, text: str, *, interrupted: bool, end_ns: int = 0) -> None:
        exchange = Exchange(
            reply.turn,
            reply.user,
            text,
            interrupted,
            clock.wall_ns(),
            reply.user_start_ns,
            reply.user_end_ns,
            reply.reply_start_ns,
            end_ns,
        )
        self._history.append(exchange)
        self._replies.pop(reply.turn, None)
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
        """Replies of earlier turns whose playing nobody has reported: who played them is gone, or late to say so."""
        self._settled = {reply.turn: reply for turn, reply in self._replies.items() if turn < before}
        for reply in self._settled.values():
            self._commit(reply, reply.text, interrupted=not reply.ended)

    def _reply_of(self, turn: int) -> Reply | None:
        """A reply that the caller may still be hearing."""
        return self._replies.get(turn) or self._settled.pop(turn, None)

    # -- the reply ----------------------------------------------------------------------------------------------------

    def _request(self, reply: Reply, candidate: Candidate[LlmConnector]) -> LlmRequest:
        told = History([*self._history.exchanges, Exchange(reply.turn, reply.user)]).messages(HISTORY_CHARS)
        messages = [Message(role, text) for role, text in told]
        start = 0
        for batch in sorted({step.batch for step in reply.steps}):
            steps = [step for step in reply.steps if step.batch == batch]
            text = "".join(reply.texts(start, steps[0].chunks))
            messages.append(Message("assistant", text, [step.call for step in steps]))
            messages += [Message("tool", step.answer or "", call_id=step.call.id) for step in steps]
            start = steps[0].chunks
        may_call = candidate.connector.tools and len(reply.steps) < self.config.tools_per_turn
        tools = [Tool(t.name, t.description, t.parameters) for t in self.config.tools] if may_call else []
        return LlmRequest(self.config.system_prompt, messages, candidate.options, said=reply.said, tools=tools)

    async def _answer(self, reply: Reply) -> None:
        """Stream the reply; functions that the model calls are called, and it goes on with what they answer."""
        if reply.given:
            self._recite(reply)
            return
        asked = self.able(LlmConnector)  # type: ignore[type-abstract]
        waiting = self.spawn(self._wait(reply, asked[0].deadlines.notice_ms if asked else 0))
        try:
            while True:
                await self._call_tools(reply)
                try:
                    reason = await self._stream(reply, asked)
                except BrokeOff as broke:  # the next one goes on after what was said
                    asked = asked[asked.index(broke.candidate) + 1 :]
                    continue
                if reason != "tools":
                    break
            self._end(reply, reason)
        except AllFailed as error:
            self.failed(reply.turn, error)
            self._bridge(reply, APOLOGY)
            self._end(reply, "failed")
        finally:
            waiting.cancel()

    def _recite(self, reply: Reply) -> None:
        """Say what the reply is to be, from where a former owner stopped."""
        if not reply.chunks:
            self.say(ReplyStarted(turn=reply.turn, provider="meshag", model="say"))
        chunker = Chunker()
        texts = [*chunker.push(reply.given), *chunker.flush()]
        for text in texts[len(reply.chunks) :]:
            self._chunk(reply, text)
        self._end(reply, "stop")

    async def _stream(self, reply: Reply, asked: list[Candidate[LlmConnector]]) -> str:
        """Publish what the first of `asked` that answers says, and the functions that it calls. Returns why it ended.

        Raises BrokeOff or AllFailed.
        """
        going_on, chunker = Continuation(reply.said), Chunker(first=not reply.chunks)
        calls: list[ToolCall] = []
        reason, chars, started_ns = "stop", len(reply.text), clock.monotonic_ns()
        answering: Candidate[LlmConnector] | None = None
        source = relay(
            asked,
            lambda candidate: self._begun(reply, candidate),
            self.provider_failed,
            hedge_ms=self.config.connectors.llm.hedge_ms,
            weigh=weight,
            least_per_s=LEAST_CHARS_PER_S,
        )
        async with aclosing(source):
            async for candidate, event in source:
                if isinstance(event, Thinking):
                    continue
                if answering is None:
                    answering = candidate
                    waited = (clock.monotonic_ns() - started_ns) / 1e9
                    metrics.FIRST_ITEM_SECONDS.labels("llm", candidate.name).observe(waited)
                    model = candidate.connector.model(candidate.options)
                    self.say(ReplyStarted(turn=reply.turn, provider=candidate.name, model=model))
                if isinstance(event, TextDelta):
                    chars += len(event.text)
                    for chunk in chunker.push(going_on.push(event.text)):
                        self._chunk(reply, chunk)
                    if chars > REPLY_CHARS:
                        reason = "length"
                        break
                elif isinstance(event, ToolCall):
                    calls.append(event)
                else:
                    reason = "stop" if event.reason == "tools" else event.reason  # it called none that it was offered
                    self._count(reply, candidate.name, event)
                    break
        for chunk in [*chunker.push(going_on.flush()), *chunker.flush()]:
            self._chunk(reply, chunk)
        if answering is not None and not calls:
            metrics.TURNS.labels("llm", answering.name, "answered").inc()
        self._note_calls(reply, calls)
        return "tools" if calls else reason

    async def _events(self, reply: Reply, candidate: Candidate[LlmConnector]) -> AsyncGenerator[LlmEvent, None]:
        """A provider's events from the first that holds a word or a call on. Raises ProviderGarbage where none does."""
        blank, said, request = "", False, self._request(reply, candidate)
        async with aclosing(candidate.connector.reply(request)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, ToolCall) and not request.tools:
                    continue  # none were offered
                if isinstance(event, TextDelta) and not said:
                    if not event.text.strip():
                        blank += event.text
                        continue
                    event = TextDelta(blank + event.text)
                elif isinstance(event, ReplyDone) and not said and not reply.said:
                    raise ProviderGarbage(f"{candidate.name}: an empty answer", code="provider_empty")
                said = said or not isinstance(event, Thinking)
                yield event
        if not said and not reply.said:  # it only thought
            raise ProviderGarbage(f"{candidate.name}: an empty answer", code="provider_empty")

    def _count(self, reply: Reply, provider: str, done: ReplyDone) -> None:
        for direction, tokens in (("in", done.input_tokens), ("out", done.output_tokens)):
            metrics.TOKENS.labels(provider, direction).inc(tokens)
            reply.used[usage.tokens(provider, direction)] += tokens

    def _chunk(self, reply: Reply, text: str, *, filler: bool = False) -> None:
        if filler:
            reply.fillers.add(len(reply.chunks))
        self.say(ReplyChunk(turn=reply.turn, n=len(reply.chunks), text=text, filler=filler))
        reply.chunks.append(text)

    def _end(self, reply: Reply, reason: str) -> None:
        reply.ended = True
        self.say(ReplyEnded(turn=reply.turn, chunks=len(reply.chunks), reason=reason))
        self.tally(reply.turn, reply.used)

    # -- when there is nothing to say ---------------------------------------------------------------------------------

    async def _wait(self, reply: Reply, notice_ms: int) -> None:
        await asyncio.sleep(notice_ms / 1000)
        if not reply.chunks:
            self._ask_patience(reply)

    def _ask_patience(self, reply: Reply) -> None:
        if not reply.ended:
            self._bridge(reply, NOTICE)

    def _bridge(self, reply: Reply, text: str) -> None:
        """Say something that is heard, but no part of the reply."""
        if not reply.chunks:
            self.say(ReplyStarted(turn=reply.turn, provider="meshag", model="notice"))
        self._chunk(reply, text, filler=True)

    def _apologise(self, turn: int, text: str) -> None:
        """Those before us could not do their part: tell the caller so, in words."""
        if turn <= self._last_turn:
            return
        self._stop("interrupted")
        self._last_turn = turn
        reply = self._replies.setdefault(turn, Reply(turn, ""))
        self._bridge(reply, text)
        self._end(reply, "failed")

    # -- functions ----------------------------------------------------------------------------------------------------

    def _note_calls(self, reply: Reply, calls: list[ToolCall]) -> None:
        """Publish what is to be called, before it is: whoever takes over calls it under the same key."""
        batch = reply.steps[-1].batch + 1 if reply.steps else 0
        for call in calls:
            step = Step(len(reply.steps), batch, len(reply.chunks), call)
            reply.steps.append(step)
            self.say(
                ToolCalled(
                    turn=reply.turn,
                    n=step.n,
                    batch=batch,
                    chunks=step.chunks,
                    id=call.id,
                    name=call.name,
                    arguments=call.arguments,
                )
            )

    async def _call_tools(self, reply: Reply) -> None:
        """Call what has not answered yet, side by side."""
        open_steps = [step for step in reply.steps if step.answer is None]
        if not open_steps:
            return
        known = {tool.name: tool for tool in self.config.tools}
        slow = [known[step.call.name] for step in open_steps if step.call.name in known]
        bridging = self.spawn(self._bridge_tools(reply, slow[0].say, slow[0].say_after_ms)) if slow else None
        try:
            async with asyncio.TaskGroup() as group:
                for step in open_steps:
                    group.create_task(self._call_tool(reply, step, known.get(step.call.name)))
        finally:
            if bridging is not None:
                bridging.cancel()

    async def _bridge_tools(self, reply: Reply, text: str, after_ms: int) -> None:
        await asyncio.sleep(after_ms / 1000)
        if text.strip():
            self._bridge(reply, f"{text.strip()} ")

    async def _call_tool(self, reply: Reply, step: Step, tool: ToolConfig | None) -> None:
        key = f"{self.session}/{reply.turn}/{step.n}"
        if tool is None:
            metrics.TOOL_CALLS.labels("unknown").inc()
            step.answer = '{"error": "there is no such function"}'
        elif step.n >= self.config.tools_per_turn:
            metrics.TOOL_CALLS.labels("limit").inc()
            step.answer = '{"error": "too many calls: answer with what you know"}'
        else:
            reply.used[usage.TOOL_CALLS] += 1
            step.answer = await self.host.tools.call(
                tool, step.call.arguments, key=key, session=self.session, turn=reply.turn
            )
        self.say(ToolAnswered(turn=reply.turn, n=step.n, text=step.answer))

    # -- takeover -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        committed = {exchange.turn for exchange in self._history.exchanges}
        asked: dict[int, Question] = {}
        for subject, inlet in self._inlets.items():
            frames = await self.journal.read(subject)
            for frame in frames:
                if isinstance(frame, VoiceStarted):
                    self._voices_ns[frame.turn] = frame.at_ns
                elif isinstance(frame, Question) and frame.text.strip():
                    self._answered.add((type(frame).__name__, frame.epoch, frame.seq))
                    self._is_repeated(frame)
                    asked[frame.turn] = frame
            if frames:
                inlet.start_after(frames[-1].epoch, frames[-1].seq)
        for frame in await self.journal.read(self._output_subject):
            self._recall(frame)
        for turn, question in sorted(asked.items()):
            if turn not in committed:
                self._ask(self._replies.setdefault(turn, Reply(turn, "")), question)
        self._replies = {turn: reply for turn, reply in self._replies.items() if turn not in committed}
        self._last_turn = max([*asked, *committed, *self._replies, 0])
        unfinished = self._replies.get(self._last_turn)
        self._early = {turn for turn in self._replies if turn not in asked}
        for frame in await self._control.history():
            if isinstance(frame, Interrupt) and unfinished is not None and frame.turn >= unfinished.turn:
                unfinished.ended = True
            self.on_signal(frame)
        if unfinished is not None and unfinished.turn in self._early:
            unfinished = None  # its question is on its way
        if unfinished is not None and not unfinished.ended and unfinished.turn in self._replies:
            self._work = self.spawn(self._answer(unfinished))

    def _recall(self, frame: AnyFrame) -> None:
        reply = self._replies.setdefault(frame.turn, Reply(frame.turn, ""))
        if isinstance(frame, ReplyChunk) and frame.n == len(reply.chunks):
            if frame.filler:
                reply.fillers.add(frame.n)
            reply.chunks.append(frame.text)
        elif isinstance(frame, ToolCalled) and frame.n == len(reply.steps):
            call = ToolCall(frame.id, frame.name, frame.arguments)
            reply.steps.append(Step(frame.n, frame.batch, frame.chunks, call))
        elif isinstance(frame, ToolAnswered) and frame.n < len(reply.steps):
            reply.steps[frame.n].answer = frame.text
        elif isinstance(frame, ReplyEnded):
            reply.ended = True
