"""OpenAI's own SDK takes the stand-in for OpenAI."""

import asyncio
import base64
import io
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from vendors.openai_stt import OpenAiSttStandIn
from vendors.spoken import speak

pytestmark = pytest.mark.contract

SAID = "alpha hotel zulu"


@pytest_asyncio.fixture
async def vendor() -> AsyncIterator[OpenAiSttStandIn]:
    async with OpenAiSttStandIn() as vendor:
        yield vendor  # type: ignore[misc]


@pytest_asyncio.fixture
async def client(vendor: OpenAiSttStandIn) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=vendor.key, base_url=f"{vendor.url}/v1", max_retries=0) as client:
        yield client


def sound(said: str = SAID, samples: int = 10**6) -> tuple[str, bytes]:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(speak(said)[: 2 * samples])
    return "speech.wav", held.getvalue()


async def test_a_file_is_heard(client: openai.AsyncOpenAI, vendor: OpenAiSttStandIn) -> None:
    found = await client.audio.transcriptions.create(file=sound(), model="whisper-1", language="en", temperature=0)
    assert found.text == SAID
    assert vendor.requests[-1]["body"]["model"] == "whisper-1"


async def test_the_formats(client: openai.AsyncOpenAI) -> None:
    text = await client.audio.transcriptions.create(file=sound(), model="whisper-1", response_format="text")
    assert text == f"{SAID}\n"
    verbose = await client.audio.transcriptions.create(
        file=sound(), model="whisper-1", response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert verbose.text == SAID
    assert verbose.language == "english"


async def written(client: openai.AsyncOpenAI) -> list[Any]:
    stream = await client.audio.transcriptions.create(file=sound(), model="gpt-4o-transcribe", stream=True)
    return [event async for event in stream]


async def test_a_stream_is_written_word_by_word(client: openai.AsyncOpenAI) -> None:
    events = await written(client)
    assert [event.delta for event in events[:-1]] == ["alpha", " hotel", " zulu"]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == SAID


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"language": "auto"}, "language"),
        ({"response_format": "verbose_json", "model": "gpt-4o-transcribe"}, "response_format"),
        ({"file": ("speech.xyz", b"")}, "file"),
        ({"file": sound("", 400)}, "file"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"speed": 1}}, "speed"),
    ],
)
async def test_what_is_wrong_is_said(client: openai.AsyncOpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.audio.transcriptions.create(**{"file": sound(), "model": "whisper-1", **more})
    assert caught.value.param == param


async def test_errors_are_openais(client: openai.AsyncOpenAI, vendor: OpenAiSttStandIn) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.audio.transcriptions.create(file=sound(), model="whisper-9")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as refused:
        await client.with_options(api_key="sk-wrong").audio.transcriptions.create(file=sound(), model="whisper-1")
    assert refused.value.code == "invalid_api_key"
    vendor.faults.set(status=429, retry_after="3")
    with pytest.raises(openai.RateLimitError) as limited:
        await client.audio.transcriptions.create(file=sound(), model="whisper-1")
    assert limited.value.response.headers["retry-after"] == "3"
    vendor.faults.set(error_after=1)
    with pytest.raises(openai.APIError, match="The server had an error"):
        await written(client)


def settings(model: str) -> Any:
    heard = {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "transcription": {"model": model, "language": "en"},
        "turn_detection": None,
    }
    return {"type": "transcription", "audio": {"input": heard}}


async def until(connection: Any, kind: str) -> list[Any]:
    found = []
    async with asyncio.timeout(5):
        async for event in connection:
            found.append(event)
            if event.type == kind:
                break
    return found


@pytest.mark.parametrize("model", ["gpt-live-transcribe", "gpt-4o-transcribe"])
async def test_the_realtime_socket(client: openai.AsyncOpenAI, model: str) -> None:
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert (await until(connection, "session.created"))[-1]
        await connection.session.update(session=settings(model))
        await until(connection, "session.updated")
        audio = base64.b64encode(speak(SAID, rate_hz=24_000)).decode()
        await connection.input_audio_buffer.append(audio=audio)
        await connection.input_audio_buffer.commit()
        events = await until(connection, "conversation.item.input_audio_transcription.completed")
        kinds = [event.type.rpartition(".")[2] for event in events]
        expected = ["delta", "delta", "delta", "committed", "completed"]
        assert kinds == (expected if model.startswith("gpt-live") else [expected[3], *expected[:3], expected[4]])
        assert events[-1].transcript == SAID
        assert len({event.item_id for event in events}) == 1
        await connection.input_audio_buffer.commit(event_id="mine")
        failure = (await until(connection, "error"))[-1]
        assert failure.error.code == "input_audio_buffer_commit_empty"
        assert failure.error.event_id == "mine"


async def test_the_socket_refuses_what_openai_refuses(client: openai.AsyncOpenAI) -> None:
    wrong = settings("gpt-4o-transcribe")
    wrong["audio"]["input"]["format"]["rate"] = 16_000
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        await connection.session.update(session=wrong)
        failure = (await until(connection, "error"))[-1]
        assert failure.error.param == "session.audio.input.format.rate"
    with pytest.raises(Exception, match="401"):
        async with client.with_options(api_key="sk-wrong").realtime.connect(extra_query={"intent": "transcription"}):
            pass


async def test_it_runs_as_a_process_and_changes_over_http() -> None:
    tests = Path(__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vendors.openai_stt", "--port", "0"),
        cwd=tests,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with (
            aiohttp.ClientSession() as http,
            openai.AsyncOpenAI(api_key="sk-test", base_url=f"{url}/v1", max_retries=0) as client,
        ):
            await http.post(f"{url}/__reply", json={"text": "What is the time?"})
            found = await client.audio.transcriptions.create(file=sound(), model="whisper-1")
            assert found.text == "What is the time?"
            await http.post(f"{url}/__faults", json={"status": 503})
            with pytest.raises(openai.InternalServerError):
                await client.audio.transcriptions.create(file=sound(), model="whisper-1")
    finally:
        process.stdin.close()
        async with asyncio.timeout(10):
            await process.wait()
