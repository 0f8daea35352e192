"""The stand-in for Azure AI Speech speaks its protocols: Azure's own SDK is content with its WebSocket.

The SDK knows no REST: that half is held against what the REST reference tells.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import azure.cognitiveservices.speech as sdk
import pytest

from vendors import voice
from vendors.azure import KEY, AzureStandIn

pytestmark = pytest.mark.contract

TEXT = "The train to Boston leaves at seven."
HEADERS = {
    "Ocp-Apim-Subscription-Key": KEY,
    "Content-Type": "application/ssml+xml",
    "X-Microsoft-OutputFormat": "raw-24khz-16bit-mono-pcm",
    "User-Agent": "a test",
}
SSML = (
    "<speak version='1.0' xmlns='http://www.w3.org/2001/10/synthesis' xml:lang='en-US'>"
    "<voice name='en-US-JennyNeural'>{}</voice></speak>"
)


@pytest.fixture
async def vendor() -> AsyncIterator[AzureStandIn]:
    async with AzureStandIn() as vendor:
        yield vendor


class TestSdk:
    async def synthesised(
        self, vendor: AzureStandIn, *, ssml: str = "", text: str = TEXT, key: str = KEY
    ) -> sdk.SpeechSynthesisResult:
        endpoint = f"ws{vendor.url.removeprefix('http')}/cognitiveservices/websocket/v1"

        def speak() -> sdk.SpeechSynthesisResult:
            config = sdk.SpeechConfig(subscription=key, endpoint=endpoint)
            config.set_speech_synthesis_output_format(sdk.SpeechSynthesisOutputFormat.Raw24Khz16BitMonoPcm)
            config.speech_synthesis_voice_name = "en-US-JennyNeural"
            speaker = sdk.SpeechSynthesizer(config, audio_config=None)
            return speaker.speak_ssml(ssml) if ssml else speaker.speak_text(text)

        async with asyncio.timeout(20):
            return await asyncio.to_thread(speak)

    @pytest.mark.parametrize("ssml", ["", SSML.format(f"<prosody rate='+10%'>{TEXT}</prosody>")])
    async def test_it_speaks(self, vendor: AzureStandIn, ssml: str) -> None:
        result = await self.synthesised(vendor, ssml=ssml)
        assert result.reason is sdk.ResultReason.SynthesizingAudioCompleted
        assert result.audio_data == voice.say(TEXT, 24_000)
        assert vendor.texts == [TEXT]

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (401, sdk.CancellationErrorCode.AuthenticationFailure),
            (429, sdk.CancellationErrorCode.TooManyRequests),
        ],
    )
    async def test_refusals(self, vendor: AzureStandIn, status: int, code: sdk.CancellationErrorCode) -> None:
        vendor.faults.set(status=status)
        result = await self.synthesised(vendor)
        assert result.reason is sdk.ResultReason.Canceled
        assert result.cancellation_details.error_code is code

    async def test_a_wrong_key(self, vendor: AzureStandIn) -> None:
        result = await self.synthesised(vendor, key="wrong")
        assert result.cancellation_details.error_code is sdk.CancellationErrorCode.AuthenticationFailure

    async def test_an_unknown_voice(self, vendor: AzureStandIn) -> None:
        result = await self.synthesised(vendor, ssml=SSML.format(TEXT).replace("Jenny", "Nobody"))
        assert result.cancellation_details.error_code is sdk.CancellationErrorCode.BadRequest


class TestRest:
    @pytest.fixture
    async def web(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession() as web:
            yield web

    @pytest.mark.parametrize("rate", ["8khz", "16khz", "24khz", "48khz"])
    async def test_it_speaks(self, vendor: AzureStandIn, web: aiohttp.ClientSession, rate: str) -> None:
        headers = {**HEADERS, "X-Microsoft-OutputFormat": f"raw-{rate}-16bit-mono-pcm"}
        async with web.post(
            f"{vendor.url}/cognitiveservices/v1", headers=headers, data=SSML.format("Fish &amp; chips.")
        ) as answer:
            pcm = await answer.read()
        assert voice.words_in(pcm, int(rate[:-3]) * 1000) == voice.codes("fish chips")

    @pytest.mark.parametrize(
        ("header", "value", "status"),
        [
            ("Ocp-Apim-Subscription-Key", "wrong", 401),
            ("Content-Type", "text/plain", 415),
            ("X-Microsoft-OutputFormat", "raw-9khz-16bit-mono-pcm", 400),
            ("X-Microsoft-OutputFormat", "", 400),
            ("User-Agent", "", 400),
            ("User-Agent", "x" * 300, 400),
        ],
    )
    async def test_which_headers_it_wants(
        self, vendor: AzureStandIn, web: aiohttp.ClientSession, header: str, value: str, status: int
    ) -> None:
        headers = {**HEADERS, header: value}
        url = f"{vendor.url}/cognitiveservices/v1"
        async with web.post(url, headers=headers, data=SSML.format(TEXT)) as answer:
            assert answer.status == status

    @pytest.mark.parametrize(
        "ssml",
        [
            "",
            "Hello.",
            SSML.format("a < b"),
            SSML.format("a & b"),
            SSML.format("<b>bold</b>"),
            SSML.format("\x01"),
            SSML.format("Hello.").replace("Jenny", "Nobody"),
            SSML.format("Hello.").replace(" xml:lang='en-US'", ""),
            SSML.format("<prosody rate='fast!'>Hello.</prosody>"),
            "<!DOCTYPE speak [<!ENTITY x 'y'>]>" + SSML.format("&x;"),
        ],
    )
    async def test_which_documents_it_refuses(
        self, vendor: AzureStandIn, web: aiohttp.ClientSession, ssml: str
    ) -> None:
        async with web.post(f"{vendor.url}/cognitiveservices/v1", headers=HEADERS, data=ssml) as answer:
            assert answer.status == 400

    async def test_it_lists_the_voices(self, vendor: AzureStandIn, web: aiohttp.ClientSession) -> None:
        url = f"{vendor.url}/cognitiveservices/voices/list"
        async with web.get(url, headers=HEADERS) as answer:
            assert "en-US-JennyNeural" in [one["ShortName"] for one in await answer.json()]
        async with web.get(url) as answer:
            assert answer.status == 401


async def test_it_is_a_process_of_its_own_too() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vendors.azure"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with aiohttp.ClientSession() as web:
        async with web.post(f"{url}/__reply", json={"gain_db": 6}) as answer:
            assert await answer.json() == {"gain_db": 6}
        async with web.post(f"{url}/__faults", json={"status": 503}) as answer:
            assert answer.status == 200
        async with web.get(f"{url}/cognitiveservices/voices/list", headers=HEADERS) as answer:
            assert answer.status == 503
    process.stdin.close()
    assert await process.wait() == 0
