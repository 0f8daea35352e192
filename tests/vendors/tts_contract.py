"""What every vendor's voice promises, tried on the vendor's stand-in.

A test module makes it its own: `class TestAzure(VendorTtsContract)` beside the fixtures `vendor`, `connect` and `way`.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, ClassVar

import pytest

from meshag.connectors.contracts import Deadlines, TtsConnector, TtsVoice
from meshag.connectors.failover import watched
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors import voice as tones
from vendors.fuzz import EXAMPLES, Babbler, odd_http
from vendors.speaking import SpeakingStandIn

KEY = "voice-canary-0123456789"
RATE_HZ = 24_000
SECRET_TEXT = "My number is five one nine."
TEXT = "The train to Boston leaves at seven."
LONG = "This is a sentence of a good many words that takes its time to be spoken to the very end."

Connect = Callable[[str], TtsConnector]
"""A connector that talks to the server at this address, with `KEY`."""

Way = dict[str, Any]
"""The options of one of the vendor's ways to be asked."""

SHORT = Deadlines(connect_ms=2_000, first_ms=400, between_ms=400, total_ms=5_000)

PATIENCE_S = 60
"""An answer that takes so long is none; a busy machine stands still for seconds."""

FAULTS: list[tuple[dict[str, Any], type[ConnectorError]]] = [
    ({"status": 500}, ProviderUnavailable),
    ({"status": 502}, ProviderUnavailable),
    ({"status": 503, "retry_after": "3"}, ProviderUnavailable),
    ({"status": 429, "retry_after": "7"}, ProviderLimited),
    ({"status": 401}, ProviderRejected),
    ({"status": 400}, ProviderRejected),
    ({"status": 404}, ProviderRejected),
    ({"status": 415}, ProviderRejected),
    ({"status": 302}, ProviderGarbage),
    ({"refuse": True}, ProviderUnavailable),
    ({"mute": True}, ProviderTimeout),
    ({"headers_only": True}, ProviderTimeout),
    ({"drip_s": 0.02}, ProviderTimeout),
    ({"slow_s": 1.0}, ProviderTimeout),
    ({"first_s": 1.0}, ProviderTimeout),
    ({"silent_after": 0}, ProviderTimeout),
    ({"silent_after": 2}, ProviderTimeout),
    ({"garbage": "html"}, ProviderGarbage),
    ({"garbage": "nan"}, ProviderGarbage),
    ({"garbage": "types"}, ProviderGarbage),
    ({"garbage": "long_line"}, ProviderGarbage),
    ({"cut_after": 0}, ProviderUnavailable),
    ({"cut_after": 2}, ProviderUnavailable),
    ({"error_after": 0}, ProviderUnavailable),
    ({"error_after": 2}, ProviderUnavailable),
    ({"endless": True}, ProviderTimeout),
]


async def spoken(voice: TtsVoice, text: str) -> bytes:
    return b"".join([piece async for piece in watched(voice.speak(text), SHORT, "x")])


def heard(pcm: bytes) -> list[int]:
    return tones.words_in(pcm, RATE_HZ)


async def until(true: Callable[[], bool]) -> None:
    """Wait, but not for long."""
    async with asyncio.timeout(3):
        while not true():
            await asyncio.sleep(0.005)


class VendorTtsContract:
    """`vendor`: a running stand-in with `KEY`. `connect`: see `Connect`. `way`: one after the other, all there are."""

    over_http: ClassVar[Way] = {}
    """The way that is a request for each sentence."""

    content_type: ClassVar[str]
    """What its answer says that it is."""

    @pytest.fixture
    async def connector(self, vendor: SpeakingStandIn, connect: Connect) -> AsyncIterator[TtsConnector]:
        made = connect(vendor.url)
        yield made
        await made.aclose()
        await made.aclose()

    async def opened(self, connector: TtsConnector, way: Way) -> TtsVoice:
        return await connector.open(connector.options(**way))

    # -- speaking -----------------------------------------------------------------------------------------------------

    async def test_what_is_said_is_heard(self, vendor: SpeakingStandIn, connector: TtsConnector, way: Way) -> None:
        voice = await self.opened(connector, way)
        for text in (TEXT, LONG, TEXT):
            assert heard(await spoken(voice, text)) == tones.codes(text)
        assert vendor.texts == [TEXT, LONG, TEXT]
        await voice.aclose()
        await voice.aclose()

    async def test_pieces_are_whole_samples_of_20_to_200_ms(self, connector: TtsConnector, way: Way) -> None:
        voice = await self.opened(connector, way)
        pieces = [piece async for piece in voice.speak(LONG)]
        assert all(len(piece) % 2 == 0 and len(piece) <= 9_600 for piece in pieces)
        assert all(len(piece) >= 960 for piece in pieces[:-1])
        assert len(pieces[0]) <= 4_800
        assert b"".join(pieces) == tones.say(LONG, voice.rate_hz)

    async def test_the_first_piece_does_not_wait_for_the_rest(
        self, vendor: SpeakingStandIn, connector: TtsConnector, way: Way
    ) -> None:
        voice = await self.opened(connector, way)
        vendor.faults.set(silent_after=1)
        async with asyncio.timeout(2), aclosing(voice.speak(LONG)) as speaking:  # type: ignore[type-var]
            assert await anext(speaking)

    @pytest.mark.parametrize("text", ["", " \n", "...", "\x00\x01", "😀", "</"])
    async def test_nothing_to_say_is_not_asked_for(
        self, vendor: SpeakingStandIn, connector: TtsConnector, way: Way, text: str
    ) -> None:
        voice = await self.opened(connector, way)
        assert await spoken(voice, text) == b""
        assert vendor.texts == []

    async def test_broken_characters_do_no_harm(self, connector: TtsConnector, way: Way) -> None:
        voice = await self.opened(connector, way)
        assert heard(await spoken(voice, "a\x00b \ud83d c\u2028d")) == tones.codes("a b c d")

    async def test_probe(self, vendor: SpeakingStandIn, connector: TtsConnector, way: Way) -> None:
        options = connector.options(**way)
        await connector.probe(options)
        assert vendor.texts == ["ok"]
        vendor.faults.set(status=503)
        with pytest.raises(ProviderUnavailable):
            await connector.probe(options)
        vendor.faults.set(garbage="empty")
        with pytest.raises(ProviderGarbage):
            await connector.probe(options)

    @pytest.mark.parametrize("fault", [{"headers_only": True}, {"silent_after": 1}, {"endless": True}])
    async def test_a_request_is_given_up_at_once(
        self, vendor: SpeakingStandIn, connector: TtsConnector, fault: dict[str, Any]
    ) -> None:
        voice = await self.opened(connector, self.over_http)
        vendor.faults.set(**fault)
        speaking = asyncio.create_task(spoken(voice, LONG))
        await until(lambda: vendor.listeners == 1)
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        await until(lambda: vendor.listeners == 0)

    # -- failures -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("faults", "kind"), FAULTS, ids=lambda given: str(given) if given is not None else "")
    async def test_a_failure_is_told_by_its_kind_and_tells_nothing_else(
        self,
        vendor: SpeakingStandIn,
        connector: TtsConnector,
        way: Way,
        faults: dict[str, Any],
        kind: type[ConnectorError],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, "meshag")
        vendor.faults.set(**faults)
        limits = Deadlines(first_ms=100, between_ms=100, total_ms=250) if kind is ProviderTimeout else Deadlines()

        async def ask() -> None:
            voice = await self.opened(connector, way)
            async for _ in watched(voice.speak(SECRET_TEXT), limits, "x"):
                pass

        with pytest.raises(kind) as failed:
            await ask()
        for told in (str(failed.value), repr(failed.value), caplog.text):
            assert KEY not in told
            assert SECRET_TEXT not in told
            assert "number" not in told
            assert "Refused" not in told
        if faults.get("retry_after") == "7":
            assert isinstance(failed.value, ProviderLimited)
            assert failed.value.retry_after_s == 7

    async def test_nobody_there(self, connect: Connect, way: Way) -> None:
        connector = connect("http://127.0.0.1:9")
        with pytest.raises(ProviderUnavailable):
            await spoken(await self.opened(connector, way), TEXT)
        await connector.aclose()

    @pytest.mark.parametrize("garbage", ["binary", "empty"])
    async def test_noise_and_nothing_are_audio(
        self, vendor: SpeakingStandIn, connector: TtsConnector, garbage: str
    ) -> None:
        vendor.faults.set(garbage=garbage)
        pcm = await spoken(await self.opened(connector, self.over_http), TEXT)
        assert (len(pcm) % 2, len(pcm) > 0) == (0, garbage == "binary")

    @pytest.mark.fuzz
    async def test_noise_in_place_of_an_answer(self, connect: Connect) -> None:
        rng = random.Random(21)
        good = tones.say("One two.", RATE_HZ)[:4_000]
        clean = 0
        async with Babbler(lambda: odd_http(rng, good, self.content_type)) as babbler:
            connector = connect(babbler.url)
            voice = await self.opened(connector, self.over_http)
            for _ in range(EXAMPLES):
                async with asyncio.timeout(PATIENCE_S):
                    clean += await listen(voice) > 0
            await connector.aclose()
        assert clean > EXAMPLES // 4


async def listen(voice: TtsVoice) -> int:
    """Bytes heard; only ConnectorError may stop it."""
    total = 0
    with suppress(ConnectorError):
        async for piece in voice.speak(TEXT):
            assert piece
            assert len(piece) % 2 == 0
            total += len(piece)
    return total
