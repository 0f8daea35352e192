"""The Azure connector against a server that speaks Azure's protocol."""

from collections.abc import AsyncIterator
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest
from hypothesis import given as tried
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import ValidationError

from meshag.connectors.pieces import sayable
from meshag.connectors.tts.azure import AzureOptions, AzureTts, ssml
from meshag.errors import ProviderGarbage, ProviderRejected
from vendors.azure import AzureStandIn, read_ssml
from vendors.tts_contract import KEY, TEXT, Connect, VendorTtsContract, Way, spoken

pytestmark = pytest.mark.contract

ENVIRONMENT = ("AZURE_SPEECH_KEY", "AZURE_SPEECH_REGION", "AZURE_SPEECH_BASE_URL")


@pytest.fixture
async def vendor() -> AsyncIterator[AzureStandIn]:
    async with AzureStandIn(key=KEY) as vendor:
        yield vendor


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connected(url: str) -> AzureTts:
        monkeypatch.setenv("AZURE_SPEECH_KEY", KEY)
        monkeypatch.setenv("AZURE_SPEECH_BASE_URL", url)
        return AzureTts()

    return connected


@pytest.fixture
def way() -> Way:
    return {}


class TestAzure(VendorTtsContract):
    content_type: ClassVar[str] = "audio/basic"

    async def test_json_is_no_audio(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        vendor.faults.set(garbage="json")
        with pytest.raises(ProviderGarbage):
            await spoken(await connector.open(AzureOptions()), TEXT)

    async def test_its_reason_is_not_repeated(self, vendor: AzureStandIn, connector: AzureTts) -> None:
        vendor.faults.set(status=400, code="five")
        with pytest.raises(ProviderRejected) as refused:
            await spoken(await connector.open(AzureOptions()), TEXT)
        assert "five" not in str(refused.value)


@pytest.fixture
async def connector(vendor: AzureStandIn, connect: Connect) -> AsyncIterator[AzureTts]:
    connector = connect(vendor.url)
    assert isinstance(connector, AzureTts)
    yield connector
    await connector.aclose()


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


class TestWire:
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

    async def test_an_unknown_voice(self, connector: AzureTts) -> None:
        with pytest.raises(ProviderRejected):
            await spoken(await connector.open(AzureOptions(voice="en-US-NobodyNeural")), TEXT)


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
