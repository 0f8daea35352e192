"""What every text-to-speech connector promises.

A new provider is one more line in `IMPLEMENTATIONS`.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pydantic import ValidationError

from meshag.audio import RATE_HZ, Resampler, duration_ms, to_floats
from meshag.connectors.contracts import TtsConnector, TtsVoice
from meshag.connectors.stt.local import LocalStt
from meshag.connectors.tts.local import LocalTts, LocalTtsOptions

pytestmark = [pytest.mark.contract, pytest.mark.models]

IMPLEMENTATIONS: dict[str, Callable[[], TtsConnector]] = {"local": LocalTts}

SENTENCE = "The train to Boston leaves at seven from platform nine."

ODD = {
    "emoji": "Hi 😀 there 👩‍👩‍👧",
    "markup": "<b>bold</b> **strong** `code` [a](b) # title",
    "control characters": "a\x00b\x1bc\u202ed\u200be",
    "another script": "你好，世界 Привет мир مرحبا",
    "a broken character": "broken \ud83d character",
    "odd numbers": "➑ ⓶ ½ 1e10 12:99 1/0 $9,999,999.99 v1.2.3.4",
    "many digits": "1" * 300,
    "one long word": "a" * 1500,
    "a long text without a stop": "word " * 300,
    "an address": "https://example.com/a?b=c&d=e#f",
}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def connector(request: pytest.FixtureRequest) -> Iterator[TtsConnector]:
    made = IMPLEMENTATIONS[request.param]()
    availability = made.availability()
    assert availability.available, f"{availability.detail} (or run pytest -m 'not models')"
    asyncio.run(made.warm())
    yield made
    asyncio.run(made.aclose())


@pytest.fixture
async def voice(connector: TtsConnector) -> TtsVoice:
    return await connector.open(connector.options())


async def spoken(voice: TtsVoice, text: str) -> bytes:
    return b"".join([piece async for piece in voice.speak(text)])


class TestTtsConnector:
    async def test_it_sounds(self, voice: TtsVoice) -> None:
        pcm = await spoken(voice, SENTENCE)
        assert 1500 < duration_ms(pcm, voice.rate_hz) < 6000
        assert np.abs(to_floats(pcm)).max() > 0.05

    async def test_pieces_are_whole_samples_and_the_first_is_short(self, voice: TtsVoice) -> None:
        pieces = [piece async for piece in voice.speak(SENTENCE)]
        assert all(piece and len(piece) % 2 == 0 for piece in pieces)
        assert duration_ms(pieces[0], voice.rate_hz) <= 100
        assert max(duration_ms(piece, voice.rate_hz) for piece in pieces) <= 400

    async def test_the_same_text_gives_the_same_audio(self, connector: TtsConnector, voice: TtsVoice) -> None:
        other = await connector.open(connector.options())
        first, again, elsewhere = await asyncio.gather(
            spoken(voice, SENTENCE), spoken(voice, SENTENCE), spoken(other, SENTENCE)
        )
        assert first == again == elsewhere

    @pytest.mark.parametrize("text", ["", " \n", "...", "😀", "**--**"])
    async def test_nothing_to_say_is_no_audio(self, voice: TtsVoice, text: str) -> None:
        assert await spoken(voice, text) == b""

    @pytest.mark.parametrize("text", ODD.values(), ids=ODD)
    async def test_odd_text_does_no_harm(self, voice: TtsVoice, text: str) -> None:
        await spoken(voice, text)
        assert await spoken(voice, "Hello.")

    async def test_closing_stops_it(self, voice: TtsVoice) -> None:
        speaking = voice.speak("A long story. " * 200)
        assert await anext(speaking)
        async with asyncio.timeout(5), contextlib.aclosing(speaking):  # type: ignore[type-var]
            pass
        assert await spoken(voice, "Hello.")
        await voice.aclose()
        await voice.aclose()

    async def test_a_long_text_begins_at_once(self, voice: TtsVoice) -> None:
        async with asyncio.timeout(5):
            async for piece in voice.speak("This is one of very many sentences. " * 1000):
                assert piece
                break

    async def test_it_can_be_understood(self, voice: TtsVoice) -> None:
        stt = LocalStt()
        stream = await stt.open(stt.options(interim_ms=0))
        stream.feed(Resampler(voice.rate_hz, RATE_HZ).push(await spoken(voice, SENTENCE), last=True))
        stream.finish()
        heard = await anext(aiter(stream.heard()))
        await stream.aclose()
        await stt.aclose()
        words = set(re.findall(r"\w+", heard.text.lower()))
        assert {"train", "boston", "leaves", "platform"} <= words

    def test_unknown_options_are_refused(self, connector: TtsConnector) -> None:
        with pytest.raises(ValidationError):
            connector.options.model_validate({"no_such_option": 1})


class TestLocalTts:
    @pytest.mark.parametrize(("speed", "least", "most"), [(2.0, 0.4, 0.7), (0.5, 1.5, 2.4)])
    async def test_speed(self, connector: TtsConnector, speed: float, least: float, most: float) -> None:
        if not isinstance(connector, LocalTts):
            pytest.skip("for the local connector only")
        own = await spoken(await connector.open(LocalTtsOptions()), SENTENCE)
        other = await spoken(await connector.open(LocalTtsOptions(speed=speed)), SENTENCE)
        assert least < len(other) / len(own) < most

    async def test_what_it_stumbles_over_is_left_out(
        self, connector: TtsConnector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not isinstance(connector, LocalTts):
            pytest.skip("for the local connector only")
        voice = await connector.open(LocalTtsOptions())
        wanted = await spoken(voice, "Room is free.")
        hibari = voice._engine._hibari  # type: ignore[attr-defined]
        phonemize = hibari.phonemize

        def stumbling(text: str) -> list[str]:
            if "7" in text:
                raise ValueError
            return [*phonemize(text)]

        monkeypatch.setattr(hibari, "phonemize", stumbling)
        assert await spoken(voice, "Room 7 is free.") != b""
        assert abs(len(await spoken(voice, "Room 7 is free.")) - len(wanted)) < len(wanted) / 4
