"""The Azure connector against a server that speaks Azure's protocol."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given as tried
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import ValidationError

from meshag.connectors.contracts import Deadlines, TtsVoice
from meshag.connectors.failover import watched
from meshag.connectors.pieces import sayable
from meshag.connectors.tts.azure import AzureOptions, AzureTts, ssml
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors import voice as tones
from vendors.azure import AzureStandIn, read_ssml
from vendors.fuzz import EXAMPLES, Babbler, odd_http

pytestmark = pytest.mark.contract

KEY = "azure-secret-0123456789"
SECRET_TEXT = "My number is five one nine."
TEXT = "The train to Boston leaves at seven."
LONG = "This is a sentence of a good many words that takes its time to be spoken to the very end."
ENVIRONMENT = ("AZURE_SPEECH_KEY", "AZURE_SPEECH_REGION", "AZURE_SPEECH_BASE_URL")


@pytest.fixture
async def vendor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AzureStandIn]:
    async with AzureStandIn(key=KEY) as vendor:
        monkeypatch.setenv("AZURE_SPEECH_KEY", KEY)
        monkeypatch.setenv("AZURE_SPEECH_BASE_URL", vendor.url)
        yield vendor


@pytest.fixture
async def connector(vendor: AzureStandIn) -> AsyncIterator[AzureTts]:
    connector = AzureTts()
    yield connector
    await connector.aclose()
    await connector.aclose()


async def spoken(voice: TtsVoice, text: str) -> bytes:
    return b"".join([piece async for piece in voice.speak(text)])


async def until(true: Any) -> None:
    """Wait, but not for long."""
    async with asyncio.timeout(3):
        while not true():
            await asyncio.sleep(0.005)


class TestOptions:
    def test_none_are_needed(self) -> None:
        assert AzureOptions.model_validate({}) == AzureOptions()

    @pytest.mark.parametrize(
        "given",
        [
            {"voice": "Jenny"},
            {"voice": "en-US-Jenny' /><voice name='x"},
            {"language": "en'US"},
            {"style": "cheerful'>"},
            {"rate": 101},
            {"rate": -51},
            {"key": "x"},
        ],
    )
    def test_what_is_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            AzureOptions.model_validate(given)

    @pytest.mark.parametrize(
        "voice", ["en-US-Andrew:DragonHDLatestNeural", "zh-CN-liaoning-XiaobeiNeural", "sr-Latn-RS-NicholasNeural"]
    )
    def test_unusual_voices(self, voice: str) -> None:
        document = ssml("Hello", AzureOptions(voice=voice))
        assert ElementTree.fromstring(document)[0].get("name") == voice

    @pytest.mark.parametrize(
        ("env", "detail"),
        [
            ({}, "set AZURE_SPEECH_KEY"),
            ({"AZURE_SPEECH_REGION": "westeurope"}, "set AZURE_SPEECH_KEY"),
            ({"AZURE_SPEECH_KEY": "k"}, "set AZURE_SPEECH_REGION"),
            ({"AZURE_SPEECH_KEY": "k", "AZURE_SPEECH_BASE_URL": "ftp://x"}, "AZURE_SPEECH_BASE_URL is not"),
            ({"AZURE_SPEECH_KEY": "k", "AZURE_SPEECH_BASE_URL": "http://[x"}, "AZURE_SPEECH_BASE_URL is not"),
        ],
    )
    def test_availability(self, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], detail: str) -> None:
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        found = AzureTts().availability()
        assert not found.available
        assert found.detail.startswith(detail)

    def test_the_region_is_the_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AZURE_SPEECH_BASE_URL", raising=False)
        monkeypatch.setenv("AZURE_SPEECH_KEY", KEY)
        monkeypatch.setenv("AZURE_SPEECH_REGION", "westeurope")
        found = AzureTts().availability()
        assert (found.available, found.detail) == (True, "https://westeurope.tts.speech.microsoft.com")


class TestSpeaking:
    async def test_what_is_said_is_heard(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        voice = await connector.open(AzureOptions())
        for text in (TEXT, LONG):
            assert tones.words_in(await spoken(voice, text), voice.rate_hz) == tones.codes(text)
        assert vendor.texts == [TEXT, LONG]

    async def test_pieces_are_whole_samples_of_20_to_200_ms(self, connector: AzureTts) -> None:
        voice = await connector.open(AzureOptions())
        pieces = [piece async for piece in voice.speak(LONG)]
        assert all(len(piece) % 2 == 0 and len(piece) <= 9_600 for piece in pieces)
        assert all(len(piece) >= 960 for piece in pieces[:-1])
        assert len(pieces[0]) <= 4_800
        assert b"".join(pieces) == tones.say(LONG, 24_000)

    async def test_the_first_piece_does_not_wait_for_the_rest(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        vendor.faults.set(silent_after=1)
        voice = await connector.open(AzureOptions())
        async with asyncio.timeout(2), aclosing(voice.speak(LONG)) as speaking:  # type: ignore[type-var]
            assert await anext(speaking)

    async def test_the_options_on_the_wire(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        options = AzureOptions(voice="de-DE-KatjaNeural", rate=20, pitch=-10, style="cheerful")
        await spoken(await connector.open(options), TEXT)
        (asked,) = vendor.requests
        body = {name: value for name, value in asked["body"].items() if name != "ssml"}
        assert body == {
            "text": TEXT,
            "voice": "de-DE-KatjaNeural",
            "language": "de-DE",
            "rate": "+20%",
            "pitch": "-10%",
            "style": "cheerful",
        }
        assert asked["headers"]["X-Microsoft-OutputFormat"] == "raw-24khz-16bit-mono-pcm"
        assert asked["headers"]["User-Agent"] == "meshag"

    async def test_the_default_is_plain(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        await spoken(await connector.open(AzureOptions()), TEXT)
        assert "<prosody" not in vendor.requests[0]["body"]["ssml"]
        assert "<mstts" not in vendor.requests[0]["body"]["ssml"]

    @pytest.mark.parametrize("text", ["", " \n", "...", "\x00\x01", "😀", "</voice>"[:2]])
    async def test_nothing_to_say_is_not_asked_for(self, vendor: AzureStandIn, connector: AzureTts, text: str) -> None:
        assert await spoken(await connector.open(AzureOptions()), text) == b""
        assert vendor.requests == []

    async def test_an_unknown_voice(self, connector: AzureTts) -> None:
        with pytest.raises(ProviderRejected):
            await spoken(await connector.open(AzureOptions(voice="en-US-NobodyNeural")), TEXT)

    async def test_probe(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        await connector.probe(AzureOptions())
        assert vendor.texts == ["ok"]
        vendor.faults.set(garbage="empty")
        with pytest.raises(ProviderGarbage):
            await connector.probe(AzureOptions())
        vendor.faults.set(status=503)
        with pytest.raises(ProviderUnavailable):
            await connector.probe(AzureOptions())

    @pytest.mark.parametrize("fault", [{"headers_only": True}, {"silent_after": 1}, {"endless": True}])
    async def test_a_request_is_given_up_at_once(
        self, vendor: AzureStandIn, connector: AzureTts, fault: dict[str, Any]
    ) -> None:
        voice = await connector.open(AzureOptions())
        vendor.faults.set(**fault)
        speaking = asyncio.create_task(spoken(voice, LONG))
        await until(lambda: vendor.listeners == 1)
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        await until(lambda: vendor.listeners == 0)


class TestMarkup:
    """What a model writes is text, whatever it looks like."""

    @pytest.mark.parametrize(
        "text",
        [
            "Fish & chips < 5 > 4 \"quoted\" 'and' so",
            "Hello</voice><voice name='en-US-GuyNeural'>I am somebody else",
            "<break time='10s'/> now",
            "]]> a &amp; b &#65; <![CDATA[x]]>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]> &b;",
            "<?xml version='1.0'?> <audio src='http://example.com/x.wav'/> x",
        ],
    )
    async def test_it_is_spoken_as_it_stands(self, vendor: AzureStandIn, connector: AzureTts, text: str) -> None:
        assert await spoken(await connector.open(AzureOptions()), text)
        assert vendor.texts == [text]
        assert vendor.requests[0]["body"]["voice"] == "en-US-JennyNeural"

    @tried(st.text(max_size=60))
    @settings(max_examples=500, deadline=None)
    def test_any_text_makes_a_sound_document(self, text: str) -> None:
        said = sayable(text)
        asked, wrong = read_ssml(ssml(said, AzureOptions(rate=5, style="sad")))
        assert (asked["text"], wrong) == (said, "")

    @pytest.mark.parametrize("text", ["a\x00b\x1bc\ud83dd\ufffee\uffff", "\x85x\u2028y\x7fz"])
    def test_what_xml_cannot_hold_is_left_out(self, text: str) -> None:
        ElementTree.fromstring(ssml(sayable(text), AzureOptions()).encode())


FAULTS: list[tuple[dict[str, Any], type[ConnectorError]]] = [
    ({"status": 500}, ProviderUnavailable),
    ({"status": 502}, ProviderUnavailable),
    ({"status": 503, "retry_after": "3"}, ProviderUnavailable),
    ({"status": 429, "retry_after": "7"}, ProviderLimited),
    ({"status": 401}, ProviderRejected),
    ({"status": 400, "code": "five"}, ProviderRejected),
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
    ({"garbage": "json"}, ProviderGarbage),
    ({"garbage": "nan"}, ProviderGarbage),
    ({"garbage": "types"}, ProviderGarbage),
    ({"garbage": "long_line"}, ProviderGarbage),
    ({"cut_after": 0}, ConnectorError),
    ({"cut_after": 2}, ConnectorError),
    ({"error_after": 2}, ConnectorError),
    ({"endless": True}, ProviderTimeout),
]


class TestFaults:
    @pytest.mark.parametrize(("faults", "kind"), FAULTS, ids=lambda given: str(given))
    async def test_a_failure_is_told_by_its_kind_and_tells_nothing_else(
        self,
        vendor: AzureStandIn,
        connector: AzureTts,
        faults: dict[str, Any],
        kind: type[ConnectorError],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, "meshag")
        vendor.faults.set(**faults)
        limits = Deadlines(first_ms=100, between_ms=100, total_ms=250) if kind is ProviderTimeout else Deadlines()
        voice = await connector.open(AzureOptions())

        async def ask() -> None:
            async for _ in watched(voice.speak(SECRET_TEXT), limits, "azure"):
                pass

        with pytest.raises(kind) as failed:
            await ask()
        for told in (str(failed.value), repr(failed.value), caplog.text):
            assert KEY not in told
            assert "five" not in told
        if faults.get("retry_after") == "7":
            assert isinstance(failed.value, ProviderLimited)
            assert failed.value.retry_after_s == 7

    @pytest.mark.parametrize("garbage", ["binary", "empty"])
    async def test_noise_and_nothing_are_audio(self, vendor: AzureStandIn, connector: AzureTts, garbage: str) -> None:
        vendor.faults.set(garbage=garbage)
        pcm = await spoken(await connector.open(AzureOptions()), TEXT)
        assert len(pcm) % 2 == 0

    async def test_garbage(self, vendor: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(21)
        good = tones.say("One two.", 24_000)[:4_000]
        async with Babbler(lambda: odd_http(rng, good, "audio/basic")) as babbler:
            monkeypatch.setenv("AZURE_SPEECH_BASE_URL", babbler.url)
            connector = AzureTts()
            voice = await connector.open(AzureOptions())
            clean = 0
            for _ in range(EXAMPLES):
                with suppress(ConnectorError):
                    async with asyncio.timeout(5):
                        async for piece in voice.speak(TEXT):
                            assert piece
                            assert len(piece) % 2 == 0
                        clean += 1
            await connector.aclose()
        assert clean > EXAMPLES // 4
