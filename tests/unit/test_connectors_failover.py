"""Who is asked next, and when: deadlines that nothing stretches, the next in order, the second beside a late first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from meshag.connectors.contracts import Connector, Deadlines, LlmEvent, Options, TextDelta, Thinking
from meshag.connectors.failover import (
    LEAST_CHARS_PER_S,
    AllFailed,
    BrokeOff,
    Candidate,
    candidates,
    relay,
    watched,
    weight,
)
from meshag.connectors.registry import Registry
from meshag.errors import ConnectorError, MeshError, ProviderGarbage, ProviderTimeout, ProviderUnavailable
from meshag.sessions.providers import StageConnectors

pytestmark = pytest.mark.unit

SOON = Deadlines(connect_ms=60, first_ms=60, between_ms=60, total_ms=5_000)
LATE_S = 5.0

Plan = list[Any]
"""What a provider does: numbers are slept (s), strings said, exceptions raised."""


class _Options(Options):
    pass


class Fake(Connector):
    options = _Options


class Ours(Fake):
    shared = False


class Asked:
    """Providers that follow their plans, and what became of them."""

    def __init__(self, plans: dict[str, Plan], *, kind: type[Connector] = Fake, deadlines: Deadlines = SOON) -> None:
        self.plans = plans
        self.candidates = [Candidate(name, kind(), _Options(), deadlines) for name in plans]
        self.started: list[str] = []
        self.closed: list[str] = []
        self.failures: list[tuple[str, type[MeshError]]] = []
        self.midway: list[bool] = []

    def start(self, candidate: Candidate[Any]) -> AsyncIterator[str]:
        return self._run(candidate.name)

    async def _run(self, name: str) -> AsyncIterator[str]:
        self.started.append(name)
        try:
            for step in self.plans[name]:
                if isinstance(step, str):
                    yield step
                elif isinstance(step, Exception):
                    raise step
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed.append(name)

    def failed(self, candidate: Candidate[Any], failure: MeshError) -> None:
        self.failures.append((candidate.name, type(failure)))
        self.midway.append(isinstance(failure, ConnectorError) and failure.midway)

    async def hear(self, **more: Any) -> list[tuple[str, str]]:
        found = relay(self.candidates, self.start, self.failed, **more)
        return [(candidate.name, item) async for candidate, item in found]


async def test_the_first_answers_and_nobody_else_is_asked() -> None:
    asked = Asked({"a": ["1", "2"], "b": ["3"]})
    assert await asked.hear() == [("a", "1"), ("a", "2")]
    assert asked.started == ["a"]
    assert asked.failures == []


@pytest.mark.parametrize(
    ("plan", "failure"),
    [
        ([ProviderUnavailable("down")], ProviderUnavailable),
        ([LATE_S, "1"], ProviderTimeout),
        ([], ProviderGarbage),
        ([KeyError("secret words of a caller")], ConnectorError),
    ],
    ids=["refuses", "silent", "empty", "raises nonsense"],
)
@pytest.mark.parametrize("hedge", [{}, {"hedge_ms": 4_000}], ids=["in turn", "hedged"])
async def test_one_that_fails_before_it_spoke_is_followed_by_the_next(
    plan: Plan, failure: type[MeshError], hedge: dict[str, int]
) -> None:
    asked = Asked({"a": plan, "b": ["2", "3"]})
    assert await asked.hear(**hedge) == [("b", "2"), ("b", "3")]
    assert asked.failures == [("a", failure)]
    assert asked.midway == [False]
    assert asked.closed == ["a", "b"]


@pytest.mark.parametrize(
    ("end", "failure"), [(LATE_S, ProviderTimeout), (ValueError("words"), ConnectorError)], ids=["silent", "raises"]
)
@pytest.mark.parametrize("hedge", [{}, {"hedge_ms": 4_000}], ids=["in turn", "hedged"])
async def test_one_that_breaks_off_is_reported_and_not_replaced(
    hedge: dict[str, int], end: Any, failure: type[MeshError]
) -> None:
    asked = Asked({"a": ["1", end], "b": ["2"]})
    heard = relay(asked.candidates, asked.start, asked.failed, **hedge)
    assert [(candidate.name, item) for candidate, item in [await anext(heard)]] == [("a", "1")]
    with pytest.raises(BrokeOff) as broke:
        await anext(heard)
    assert broke.value.candidate.name == "a"
    assert asked.failures == [("a", failure)]
    assert asked.midway == [True]
    assert asked.started == ["a"]


@pytest.mark.parametrize("hedge", [{}, {"hedge_ms": 20}], ids=["in turn", "hedged"])
async def test_when_all_fail_that_is_said(hedge: dict[str, int]) -> None:
    asked = Asked({"a": [ProviderUnavailable("down")], "b": [LATE_S]})
    with pytest.raises(AllFailed):
        await asked.hear(**hedge)
    assert [name for name, _ in asked.failures] == ["a", "b"]
    with pytest.raises(AllFailed):
        await Asked({}).hear(**hedge)


async def test_a_failure_never_repeats_a_strangers_words() -> None:
    told: list[str] = []
    asked = Asked({"a": [ValueError("my card number is 4242")]})
    heard = relay(asked.candidates, asked.start, lambda _, failure: told.append(str(failure)))
    with pytest.raises(AllFailed):
        await anext(heard)
    assert told == ["a: ValueError"]


# -- deadlines --------------------------------------------------------------------------------------------------------


async def _drip(every_s: float, item: Any = "x") -> AsyncIterator[Any]:
    while True:
        await asyncio.sleep(every_s)
        yield item


async def _last_words(items: AsyncIterator[Any], deadlines: Deadlines, **more: Any) -> str:
    with pytest.raises(ProviderTimeout) as caught:
        async with asyncio.timeout(10):
            _ = [item async for item in watched(items, deadlines, "p", **more)]
    return str(caught.value)


async def test_a_drip_of_items_ends_at_the_total() -> None:
    deadlines = Deadlines(first_ms=1_000, between_ms=1_000, total_ms=100)
    assert "p: no next item" in await _last_words(_drip(0.01), deadlines)


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pace is judged after a fifth of a second."""
    monkeypatch.setattr("meshag.connectors.failover.PACE_WINDOW_S", 0.2)


@pytest.mark.usefixtures("short_window")
async def test_a_stream_that_is_slower_than_its_floor_is_too_slow() -> None:
    deadlines = Deadlines(first_ms=1_000, between_ms=1_000)
    assert "too slow" in await _last_words(_drip(0.06), deadlines, weigh=len, least_per_s=100)


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("event", [Thinking(1), TextDelta("x")])
async def test_a_drip_of_thoughts_is_too_slow_like_one_of_words(event: LlmEvent) -> None:
    assert weight(event) == 1
    deadlines = Deadlines(first_ms=2_000, between_ms=2_000)
    said = await _last_words(_drip(0.25, event), deadlines, weigh=weight, least_per_s=LEAST_CHARS_PER_S)
    assert "too slow" in said


async def test_thoughts_without_end_end_at_the_total() -> None:
    deadlines = Deadlines(first_ms=1_000, between_ms=1_000, total_ms=100)
    assert "no next item" in await _last_words(_drip(0.01, Thinking(50)), deadlines, weigh=weight, least_per_s=5)


@pytest.mark.usefixtures("short_window")
async def test_what_the_listener_takes_his_time_for_is_not_the_providers_slowness() -> None:
    async def quick() -> AsyncIterator[str]:
        for _ in range(8):
            yield "x"

    heard = []
    async for item in watched(quick(), SOON, "p", weigh=len, least_per_s=100):
        await asyncio.sleep(0.05)
        heard.append(item)
    assert len(heard) == 8


@pytest.mark.usefixtures("short_window")
async def test_a_model_of_ones_own_may_be_slow() -> None:
    plan = ["x", *[0.06, "x"] * 6]
    deadlines = Deadlines(first_ms=1_000, between_ms=1_000)
    slow = Asked({"a": plan}, kind=Ours, deadlines=deadlines)
    assert len(await slow.hear(weigh=len, least_per_s=100)) == 7
    with pytest.raises(BrokeOff):
        await Asked({"a": plan}, deadlines=deadlines).hear(weigh=len, least_per_s=100)


# -- hedging ----------------------------------------------------------------------------------------------------------

PATIENT = Deadlines(connect_ms=9_000, first_ms=9_000, between_ms=9_000, total_ms=9_000)


async def test_a_late_first_is_overtaken_and_closed() -> None:
    asked = Asked({"a": [LATE_S, "1"], "b": ["2", 0.01, "3"], "c": ["4"]}, deadlines=PATIENT)
    assert await asked.hear(hedge_ms=20) == [("b", "2"), ("b", "3")]
    assert asked.started == ["a", "b"]
    assert asked.closed[0] == "a"
    assert asked.failures == []


async def test_a_first_that_is_in_time_is_heard_alone() -> None:
    asked = Asked({"a": ["1", 0.05, "2"], "b": ["3"]}, deadlines=PATIENT)
    assert await asked.hear(hedge_ms=3_000) == [("a", "1"), ("a", "2")]
    assert asked.started == ["a"]


async def test_a_late_first_may_still_win() -> None:
    asked = Asked({"a": [0.1, "1"], "b": [LATE_S, "2"]}, deadlines=PATIENT)
    assert await asked.hear(hedge_ms=20) == [("a", "1")]
    assert asked.started == ["a", "b"]
    assert "b" in asked.closed


async def test_leaving_closes_everybody() -> None:
    asked = Asked({"a": [LATE_S], "b": [LATE_S]}, deadlines=PATIENT)
    hearing = asyncio.create_task(asked.hear(hedge_ms=10))
    while asked.started != ["a", "b"]:
        await asyncio.sleep(0.01)
    hearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hearing
    assert sorted(asked.closed) == ["a", "b"]


# -- who may be asked -------------------------------------------------------------------------------------------------


class Switches:
    def __init__(self, **states: str) -> None:
        self.states = states

    def state(self, stage: str, provider: str) -> str:
        return self.states.get(provider, "closed")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    made = {"a": Fake(), "b": Fake(), "c": Fake()}
    registry = Registry()
    monkeypatch.setattr(registry, "get", lambda stage, name: made[name])
    chosen = StageConnectors(primary="a", fallback=["b", "c"])

    def able(**states: str) -> list[str]:
        return [one.name for one in candidates(registry, "llm", chosen, Fake, Switches(**states))]

    return able


def test_open_ones_are_spared_unless_nobody_else_is_left(names: Callable[..., list[str]]) -> None:
    assert names() == ["a", "b", "c"]
    assert names(a="open") == ["b", "c"]
    assert names(a="open", b="open", c="open") == ["a", "b", "c"]


def test_those_switched_off_are_never_asked(names: Callable[..., list[str]]) -> None:
    assert names(a="off", b="open") == ["c"]
    assert names(a="off", b="open", c="open") == ["b", "c"]
    assert names(a="off", b="off", c="off") == []


@pytest.mark.parametrize(("said", "first_ms"), [({}, [1_200, 3_600]), ({"first_ms": 700}, [700, 700])])
def test_the_last_one_has_longer_unless_the_session_says_how_long(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, int], first_ms: list[int]
) -> None:
    registry = Registry()
    monkeypatch.setattr(registry, "get", lambda stage, name: Fake())
    chosen = StageConnectors.model_validate({"primary": "a", "fallback": ["b"], "deadlines": said})
    assert [one.deadlines.first_ms for one in candidates(registry, "llm", chosen, Fake)] == first_ms
