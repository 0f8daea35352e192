"""The stand-in for ElevenLabs speaks ElevenLabs' protocol: its own SDK is content with it.

The SDK's WebSocket client insists on TLS and knows one context only, so the WebSockets are held against the message
types that the SDK brings along, and against what the API reference tells.
"""

import asyncio
import base64
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from elevenlabs import AudioOutputMulti, FinalOutputMulti
from elevenlabs.client import AsyncElevenLabs
from elevenlabs.core import ApiError

from vendors import voice
from vendors.elevenlabs import KEY, ElevenLabsStandIn

pytestmark = pytest.mark.contract

RACHEL = "21m00Tcm4TlvDq8ikWAM"
TEXT = "The train to Boston leaves at seven."
PCM = {"output_format": "pcm_24000"}


@pytest.fixture
async def vendor() -> AsyncIterator[ElevenLabsStandIn]:
    async with ElevenLabsStandIn() as vendor:
        yield vendor


@pytest.fixture
async def web() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"xi-api-key": KEY}) as web:
        yield web


@pytest.fixture
async def sdk(vendor: ElevenLabsStandIn) -> AsyncIterator[AsyncElevenLabs]:
    async with httpx.AsyncClient() as client:
        yield AsyncElevenLabs(api_key=KEY, base_url=vendor.url, httpx_client=client)


class TestSdk:
    async def test_it_lists_the_voices(self, sdk: AsyncElevenLabs) -> None:
        found = await sdk.voices.get_all()
        assert {voice.voice_id: voice.name for voice in found.voices}[RACHEL] == "Rachel"

    async def test_it_streams_speech(self, vendor: ElevenLabsStandIn, sdk: AsyncElevenLabs) -> None:
        speech = sdk.text_to_speech.stream(
            RACHEL, text=TEXT, model_id="eleven_flash_v2_5", output_format="pcm_24000", seed=3
        )
        pcm = b"".join([piece async for piece in speech])
        assert voice.words_in(pcm, 24_000) == voice.codes(TEXT)
        assert vendor.texts == [TEXT]

    async def test_a_wrong_key(self, sdk: AsyncElevenLabs) -> None:
        with pytest.raises(ApiError) as refused:
            await sdk.voices.get_all(request_options={"additional_headers": {"xi-api-key": "wrong"}})
        assert refused.value.status_code == 401
        assert refused.value.body["detail"]["status"] == "invalid_api_key"

    @pytest.mark.parametrize(
        ("voice_id", "model", "settings", "status"),
        [
            ("Rachel", "eleven_flash_v2_5", {}, 404),
            (RACHEL, "eleven_flash_v9", {}, 400),
            (RACHEL, "eleven_flash_v2_5", {"speed": 4.0}, 422),
            (RACHEL, "eleven_flash_v2_5", {"stability": 1.5}, 422),
        ],
    )
    async def test_what_it_refuses(
        self, sdk: AsyncElevenLabs, voice_id: str, model: str, settings: dict[str, float], status: int
    ) -> None:
        speech = sdk.text_to_speech.stream(
            voice_id, text=TEXT, model_id=model, output_format="pcm_24000", voice_settings=settings
        )
        with pytest.raises(ApiError) as refused:
            await anext(speech)
        assert refused.value.status_code == status

    async def test_too_many_requests(self, vendor: ElevenLabsStandIn, sdk: AsyncElevenLabs) -> None:
        vendor.faults.set(status=429)
        with pytest.raises(ApiError) as refused:
            await sdk.voices.get_all(request_options={"max_retries": 0})
        assert refused.value.body["detail"]["status"] == "too_many_concurrent_requests"


async def until_closed(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    return [message.json() async for message in socket]


class TestStreamInput:
    async def test_speech_then_the_final_message_then_the_end(
        self, vendor: ElevenLabsStandIn, web: aiohttp.ClientSession
    ) -> None:
        url = f"{vendor.url}/v1/text-to-speech/{RACHEL}/stream-input"
        async with web.ws_connect(url, params=PCM) as socket:
            await socket.send_json({"text": " ", "voice_settings": {"stability": 0.5}})
            await socket.send_json({"text": "The train to ", "try_trigger_generation": True})
            await socket.send_json({"text": "Boston leaves at seven. "})
            await socket.send_json({"text": ""})
            *spoken, final = await until_closed(socket)
        assert socket.close_code == 1000
        assert final == {"audio": None, "isFinal": True, "normalizedAlignment": None, "alignment": None}
        pcm = b"".join(base64.b64decode(message["audio"]) for message in spoken)
        assert voice.words_in(pcm, 24_000) == voice.codes(TEXT)

    async def test_silence_is_not_endured(self, vendor: ElevenLabsStandIn, web: aiohttp.ClientSession) -> None:
        vendor.idle_s = 0.05
        url = f"{vendor.url}/v1/text-to-speech/{RACHEL}/stream-input"
        async with web.ws_connect(url, params=PCM) as socket:
            (refusal,) = await until_closed(socket)
        assert (refusal["error"], refusal["code"], socket.close_code) == ("input_timeout_exceeded", 1008, 1008)


class TestMultiStreamInput:
    @pytest.fixture
    async def socket(
        self, vendor: ElevenLabsStandIn, web: aiohttp.ClientSession
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        url = f"{vendor.url}/v1/text-to-speech/{RACHEL}/multi-stream-input"
        async with web.ws_connect(url, params=PCM) as socket:
            yield socket

    async def test_two_contexts_at_once(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        texts = {"a": "The train leaves.", "b": "Good evening to everybody."}
        for name, text in texts.items():
            await socket.send_json({"text": " ", "context_id": name, "voice_settings": {"speed": 1.1}})
            await socket.send_json({"text": f"{text} ", "context_id": name, "flush": True})
        pcm, ended = {"a": b"", "b": b""}, set[str]()
        while len(ended) < 2:
            message = await socket.receive_json(timeout=2)
            name = message["contextId"]
            if message["isFinal"]:
                assert FinalOutputMulti(**message).context_id == name
                ended.add(name)
                continue
            assert AudioOutputMulti(**message).context_id == name
            if not pcm[name]:
                await socket.send_json({"context_id": name, "close_context": True})
            pcm[name] += base64.b64decode(message["audio"])
        for name, text in texts.items():
            assert voice.words_in(pcm[name], 24_000) == voice.codes(text)

    async def test_a_flushed_context_stays_open(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_json({"text": "One. ", "context_id": "a", "flush": True})
        for _ in range(2):
            assert (await socket.receive_json(timeout=2))["isFinal"] is None
        with pytest.raises(TimeoutError):
            await socket.receive_json(timeout=0.1)

    async def test_closed_before_its_first_audio_it_has_none(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_json({"text": "One. ", "context_id": "a", "flush": True})
        await socket.send_json({"context_id": "a", "close_context": True})
        assert (await socket.receive_json(timeout=2))["isFinal"] is True

    async def test_the_sixth_open_context_is_one_too_many(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        for n in range(6):
            await socket.send_json({"text": " ", "context_id": str(n)})
        (refusal,) = await until_closed(socket)
        assert (refusal["error"], socket.close_code) == ("max_active_conversations", 1008)

    async def test_close_socket_speaks_to_the_end(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_json({"text": "One. ", "context_id": "a", "flush": True})
        await socket.send_json({"close_socket": True})
        messages = await until_closed(socket)
        assert messages[0]["audio"]
        assert messages[-1]["isFinal"]

    @pytest.mark.parametrize(
        "message", [{"txt": "One."}, {"text": 5}, {"text": " ", "voice_settings": {"speed": 4}}, ["text"]]
    )
    async def test_what_it_does_not_know(self, socket: aiohttp.ClientWebSocketResponse, message: Any) -> None:
        await socket.send_json(message)
        assert (await until_closed(socket))[0]["error"] == "invalid_input_message"

    @pytest.mark.parametrize(
        ("voice_id", "query", "error"),
        [
            ("Rachel", {}, "voice_id_does_not_exist"),
            (RACHEL, {"model_id": "eleven_v3"}, "model_not_found"),
            (RACHEL, {"inactivity_timeout": "600"}, "invalid_input_message"),
            (RACHEL, {"output_format": "wav"}, "invalid_input_message"),
        ],
    )
    async def test_what_it_refuses(
        self, vendor: ElevenLabsStandIn, web: aiohttp.ClientSession, voice_id: str, query: dict[str, str], error: str
    ) -> None:
        url = f"{vendor.url}/v1/text-to-speech/{voice_id}/multi-stream-input"
        async with web.ws_connect(url, params={**PCM, **query}) as socket:
            assert (await until_closed(socket))[0]["error"] == error

    async def test_a_wrong_key(self, vendor: ElevenLabsStandIn, web: aiohttp.ClientSession) -> None:
        url = f"{vendor.url}/v1/text-to-speech/{RACHEL}/multi-stream-input"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await web.ws_connect(url, headers={"xi-api-key": "wrong"})
        assert refused.value.status == 401


async def test_it_is_a_process_of_its_own_too(web: aiohttp.ClientSession) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vendors.elevenlabs"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with web.post(f"{url}/__reply", json={"gain_db": -6}) as answer:
        assert await answer.json() == {"gain_db": -6}
    async with web.post(f"{url}/__faults", json={"status": 503}), web.get(f"{url}/v1/voices") as answer:
        assert answer.status == 503
    process.stdin.close()
    assert await process.wait() == 0
