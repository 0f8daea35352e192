"""What a provider that has failed must show: to begin in time, or, where it broke off, to keep on to the end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshag.audio import RATE_HZ
from meshag.connectors import trials
from meshag.connectors.contracts import (
    Connector,
    Deadlines,
    Heard,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Options,
    ReplyDone,
    SttConnector,
    SttStream,
    TextDelta,
    Thinking,
    TtsConnector,
    TtsVoice,
)
from meshag.errors import ConnectorError, ProviderGarbage, ProviderTimeout, ProviderUnavailable

pytestmark = pytest.mark.unit

SOON = Deadlines(connect_ms=50, first_ms=50, between_ms=50, total_ms=5_000)
LATE_S = 3.0
DOWN = ProviderUnavailable("down")
DONE = ReplyDone("stop")

Plan = list[Any]
"""What a provider does: numbers are slept (s), exceptions raised, everything else is what it gives."""


async def follow(plan: Plan) -> AsyncIterator[Any]:
    for step in plan:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        else:
            yield step


class Shared:
    options = Options

    def __init__(self, plan: Plan, opening: Plan | None = None) -> None:
        self.plan, self.opening = plan, opening or []
        self.closed = 0
        self.fed = b""

    async def open(self, options: Options) -> Any:
        async for _ in follow(self.opening):
            pass
        return self

    async def aclose(self) -> None:
        self.closed += 1


class Model(Shared, LlmConnector):
    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        assert request.messages[-1].role == "user"
        try:
            async for event in follow(self.plan):
                yield event
        finally:
            self.closed += 1


class Voice(Shared, TtsConnector, TtsVoice):
    rate_hz = 24_000

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        assert text.count(".") == 2
        async for pcm in follow(self.plan):
            yield pcm


class Recogniser(Shared, SttConnector, SttStream):
    def feed(self, pcm: bytes) -> None:
        self.fed += pcm

    def finish(self) -> None:
        assert len(self.fed) == 2 * RATE_HZ * trials.HUM_MS // 1000

    def reset(self) -> None:
        raise AssertionError

    async def heard(self) -> AsyncIterator[Heard]:
        async for heard in follow(self.plan):
            yield heard


WORD, PCM = TextDelta("one "), bytes(4_800)
MIDWAY = {
    "dies": [DOWN],
    "falls silent": [LATE_S],
}


@pytest.mark.parametrize(
    "provider",
    [
        Model([WORD] * 40 + [DONE]),
        Model([Thinking(3), 0.01, WORD, 0.01, DONE]),
        Model([TextDelta("a hundred characters" * 5)] * 50),  # it need not be paid for to its end
        Voice([PCM] * 20),
        Recogniser([Heard("hm", final=False), Heard("", final=True)]),
    ],
)
async def test_one_that_keeps_on_to_the_end_is_in_order(provider: Any) -> None:
    await trials.keeps_on(provider, Options(), SOON, "x")
    assert provider.closed == 1


@pytest.mark.parametrize("end", MIDWAY.values(), ids=MIDWAY)
@pytest.mark.parametrize(
    "make",
    [
        lambda end: Model([WORD] * 3 + end),
        lambda end: Voice([PCM] * 3 + end),
        lambda end: Recogniser([Heard("hm", final=False), *end]),
        lambda end: Voice([PCM], opening=end),
        lambda end: Recogniser([Heard("", final=True)], opening=end),
    ],
    ids=["model", "voice", "recogniser", "voice that opens", "recogniser that opens"],
)
async def test_one_that_breaks_off_is_not(make: Any, end: Plan) -> None:
    with pytest.raises(ConnectorError):
        await trials.keeps_on(make(end), Options(), SOON, "x")


@pytest.mark.parametrize("provider", [Model([DONE]), Model([Thinking(9), DONE]), Voice([]), Recogniser([])])
async def test_one_that_gives_nothing_is_not(provider: Any) -> None:
    with pytest.raises(ProviderGarbage):
        await trials.keeps_on(provider, Options(), SOON, "x")


async def test_one_that_drips_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshag.connectors.failover.PACE_WINDOW_S", 0.1)
    with pytest.raises(ProviderTimeout, match="too slow"):
        await trials.keeps_on(Voice([bytes(240), 0.03] * 20), Options(), SOON, "x")
    with pytest.raises(ProviderTimeout, match="too slow"):
        await trials.keeps_on(Model([TextDelta("."), 0.4] * 9), Options(), Deadlines(), "x")


class Slow(Connector):
    def __init__(self, probe_s: float) -> None:
        self.probe_s = probe_s

    async def probe(self, options: Options) -> None:
        await asyncio.sleep(self.probe_s)


async def test_a_beginning_has_no_longer_than_in_a_turn() -> None:
    await trials.begins(Slow(0.0), Options(), SOON, "x")
    with pytest.raises(ProviderTimeout, match="100 ms"):
        await trials.begins(Slow(LATE_S), Options(), SOON, "x")


def test_what_one_session_cannot_wait_for_is_nobody_elses_measure() -> None:
    usual = Deadlines()
    assert trials.patient(usual, None) == usual
    found = trials.patient(usual, Deadlines(first_ms=100, between_ms=9_000))
    assert (found.first_ms, found.between_ms) == (usual.first_ms, 9_000)


def test_a_hum_is_audio_of_its_length() -> None:
    assert len(trials.hum()) == 2 * RATE_HZ * trials.HUM_MS // 1000
    assert any(trials.hum())
