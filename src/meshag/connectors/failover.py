"""Around every provider call: deadlines that a slow drip cannot stretch, and who is asked next.

`candidates` says who may be asked in this turn, `relay` asks them: the first one that answers is listened to, and one
that breaks off in mid-answer is reported, since only the stage knows how to go on from there.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

from meshag import clock
from meshag.connectors.contracts import CONNECT_MS, Connector, Deadlines, LlmEvent, Options, TextDelta, Thinking
from meshag.connectors.registry import Registry
from meshag.errors import ConfigError, ConnectorError, MeshError, ProviderGarbage, ProviderTimeout
from meshag.sessions.providers import StageConnectors
from meshag.subjects import Stage

C = TypeVar("C", bound=Connector)
T = TypeVar("T")

APOLOGY = "I am sorry, I cannot answer right now. Please try again in a moment."
"""Said when every provider of a stage has failed."""

APOLOGY_UNHEARD = "I am sorry, I could not understand you. Please say that again."
"""Said when every speech recogniser has failed."""

NOTICE = "I am sorry, one moment please. "
"""Said when a provider has failed or is late, and nothing else could be said in time."""

LAST_FIRST = {"stt": 3, "llm": 3, "tts": 1}
"""The last provider left has so many times as long for its first item: nobody else would be quicker. The caller is
asked for patience meanwhile, which only a voice that works can do."""

PACE_WINDOW_S = 1.2
"""The pace of a stream is judged over this much waiting for it."""

LEAST_CHARS_PER_S = 5.0
"""A vendor's model that writes less is out of order: speech takes about fifteen characters a second."""

LEAST_MS_PER_S = 300.0
"""A vendor's voice that speaks less in a second is out of order: the caller hears 1,000."""


class Switches(Protocol):
    """Which providers may be asked: `breakers.Breakers`."""

    def state(self, stage: str, provider: str) -> str:
        """`closed`, `open` or `off`."""
        ...


@dataclass(frozen=True)
class Candidate(Generic[C]):
    """A provider to try, with what the session wants of it."""

    name: str
    connector: C
    options: Options
    deadlines: Deadlines

    @property
    def options_json(self) -> bytes:
        """The options as they are told to who probes the provider."""
        return self.options.model_dump_json(exclude_unset=True).encode()


class AllFailed(MeshError):  # noqa: N818 - reads as what happened
    """Every provider was asked, and none gave anything."""

    code = "all_providers_failed"
    retryable = True


class BrokeOff(MeshError):  # noqa: N818
    """The provider that was answering broke off in mid-answer."""

    code = "provider_broke_off"

    def __init__(self, candidate: Candidate[Any]) -> None:
        super().__init__(f"{candidate.name} broke off")
        self.candidate = candidate


def candidates(
    registry: Registry, stage: Stage, chosen: StageConnectors, kind: type[C], switches: Switches | None = None
) -> list[Candidate[C]]:
    """Those of the session's providers that may be asked now, in their order.

    Those whose breaker is open are left out, unless that leaves nobody: then it costs nothing to try them.
    """
    able: list[Candidate[C]] = []
    for name in (chosen.primary, *chosen.fallback):
        try:
            connector = registry.get(stage, name)
        except ConfigError:
            continue  # unknown here; reported when the session was created
        if isinstance(connector, kind) and connector.availability().available:
            options = connector.options.model_validate(chosen.config.get(name, {}))
            able.append(Candidate(name, connector, options, chosen.deadlines.over(connector.deadlines)))
    if switches is not None:
        able = [one for one in able if switches.state(stage, one.name) != "off"]
        able = [one for one in able if switches.state(stage, one.name) == "closed"] or able
    if able and chosen.deadlines.first_ms is None:
        last = able[-1]
        first_ms = last.deadlines.first_ms * LAST_FIRST.get(stage, 1)
        able[-1] = replace(last, deadlines=replace(last.deadlines, first_ms=first_ms))
    return able


# -- one provider -----------------------------------------------------------------------------------------------------


async def watched(
    items: AsyncIterator[T],
    deadlines: Deadlines,
    provider: str,
    *,
    weigh: Callable[[T], float] | None = None,
    least_per_s: float = 0.0,
) -> AsyncGenerator[T, None]:
    """`items`, as long as they keep coming in time. Raises ProviderTimeout, and closes the source at any end.

    `weigh`, `least_per_s`: what an item is worth, and how much must come in a second of waiting, after the first one.
    The time in which nobody asks for the next item does not count.
    """
    end_s = clock.monotonic_s() + deadlines.total_ms / 1000
    limit_ms, what = deadlines.first_ms, "first item"
    waited_s = weight = 0.0
    CONNECT_MS.set(deadlines.connect_ms)
    async with aclosing(cast("Any", items)) as source:
        while True:
            began_s = clock.monotonic_s()
            left_s = min(limit_ms / 1000, end_s - began_s)
            try:
                async with asyncio.timeout(left_s):
                    item = await anext(source)
            except TimeoutError:
                raise ProviderTimeout(f"{provider}: no {what} within {int(left_s * 1000)} ms") from None
            except StopAsyncIteration:
                return
            if what == "next item" and weigh is not None:
                waited_s += clock.monotonic_s() - began_s
                weight += weigh(item)
                if waited_s >= PACE_WINDOW_S:
                    if weight < least_per_s * waited_s:
                        raise ProviderTimeout(f"{provider}: too slow, {weight / waited_s:.1f} a second")
                    waited_s = weight = 0.0
            yield item
            limit_ms, what = deadlines.between_ms, "next item"


async def connected(opening: Any, deadlines: Deadlines, provider: str) -> Any:
    """The result of an `open` call, if it comes in time. Raises ProviderTimeout."""
    CONNECT_MS.set(deadlines.connect_ms)
    try:
        async with asyncio.timeout(deadlines.connect_ms / 1000):
            return await opening
    except TimeoutError:
        raise ProviderTimeout(f"{provider}: not connected within {deadlines.connect_ms} ms") from None


def weight(event: LlmEvent) -> float:
    """What an event counts for the pace of a reply, characters. A call, or the end, is never too slow."""
    if isinstance(event, TextDelta):
        return len(event.text)
    return event.chars if isinstance(event, Thinking) else LEAST_CHARS_PER_S * 10


def as_failure(error: Exception, provider: str, *, midway: bool = False) -> MeshError:
    """Any exception of a provider as one of ours: its own text may hold what a caller said, so it is not repeated.

    `midway`: a part of the answer had come.
    """
    failure = error if isinstance(error, MeshError) else ConnectorError(f"{provider}: {type(error).__name__}")
    if midway and isinstance(failure, ConnectorError):
        failure.midway = True
    return failure


# -- one after the other ----------------------------------------------------------------------------------------------


async def relay(
    asked: Iterable[Candidate[C]],
    start: Callable[[Candidate[C]], AsyncIterator[T]],
    failed: Callable[[Candidate[C], MeshError], None],
    *,
    hedge_ms: int | None = None,
    weigh: Callable[[T], float] | None = None,
    least_per_s: float = 0.0,
) -> AsyncGenerator[tuple[Candidate[C], T], None]:
    """The items of the first of `asked` that gives one, each with whose it is.

    One that fails before its first item is followed by the next at once. `hedge_ms`: the second also starts when the
    first is late by so much; whoever speaks first is listened to and the other one is closed. `failed` is told of every
    failure. Raises BrokeOff when the one listened to fails, AllFailed when nobody gave anything.
    """

    def stream(candidate: Candidate[C]) -> AsyncGenerator[T, None]:
        pace = least_per_s if candidate.connector.shared else 0.0
        return watched(start(candidate), candidate.deadlines, candidate.name, weigh=weigh, least_per_s=pace)

    if hedge_ms is not None:
        race = _raced(deque(asked), stream, failed, hedge_ms / 1000)
        async with aclosing(race):
            async for pair in race:
                yield pair
        return
    for candidate in asked:
        gave = False
        source = stream(candidate)
        try:
            async with aclosing(source):
                async for item in source:
                    gave = True
                    yield candidate, item
            if gave:
                return
            raise ProviderGarbage(f"{candidate.name}: an empty answer", code="provider_empty")
        except Exception as error:
            failed(candidate, as_failure(error, candidate.name, midway=gave))
            if gave:
                raise BrokeOff(candidate) from error
    raise AllFailed("every provider failed")


class Runner(Generic[C, T]):
    """A provider's stream in a task of its own, up to `ahead` items before who listens."""

    def __init__(self, candidate: Candidate[C], stream: AsyncGenerator[T, None], *, ahead: int = 8) -> None:
        self.candidate = candidate
        self.items: asyncio.Queue[T | Exception | None] = asyncio.Queue(ahead)
        """What it gave; last its failure, or None."""
        self.spoke = asyncio.Event()
        self._task = asyncio.create_task(self._run(stream))

    async def _run(self, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await self.items.put(item)
                    self.spoke.set()
            end: Exception | None = None
        except Exception as error:
            end = error
        await self.items.put(end)
        self.spoke.set()

    async def close(self) -> None:
        """Stop it. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _raced(
    waiting: deque[Candidate[C]],
    stream: Callable[[Candidate[C]], AsyncGenerator[T, None]],
    failed: Callable[[Candidate[C], MeshError], None],
    hedge_s: float,
) -> AsyncGenerator[tuple[Candidate[C], T], None]:
    running: list[Runner[C, T]] = []
    hedged = False
    try:
        while running or waiting:
            if not running:
                running.append(Runner(waiting[0], stream(waiting.popleft())))
            heard = [asyncio.create_task(runner.spoke.wait()) for runner in running]
            try:
                patience_s = hedge_s if waiting and not hedged else None
                await asyncio.wait(heard, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in heard:
                    task.cancel()
            spoke = next((runner for runner in running if runner.spoke.is_set()), None)
            if spoke is None:
                hedged = True
                running.append(Runner(waiting[0], stream(waiting.popleft())))
                continue
            first = spoke.items.get_nowait()
            if isinstance(first, Exception) or first is None:
                running.remove(spoke)
                await spoke.close()
                empty = ProviderGarbage(f"{spoke.candidate.name}: an empty answer", code="provider_empty")
                failed(spoke.candidate, as_failure(first or empty, spoke.candidate.name))
                continue
            for other in [runner for runner in running if runner is not spoke]:
                running.remove(other)
                await other.close()
            yield spoke.candidate, first
            while (item := await spoke.items.get()) is not None:
                if isinstance(item, Exception):
                    failed(spoke.candidate, as_failure(item, spoke.candidate.name, midway=True))
                    raise BrokeOff(spoke.candidate) from item
                yield spoke.candidate, item
            return
        raise AllFailed("every provider failed")
    finally:
        for runner in running:
            await runner.close()
